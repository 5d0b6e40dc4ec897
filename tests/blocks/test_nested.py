"""Nested values: what models take and return beside single tensors."""

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from updp.blocks.nested import (
    ModelInputs,
    as_samples,
    call,
    count,
    from_structure,
    is_plain,
    join,
    map_tensors,
    named_tensors,
    same,
    split,
    structure_of,
    take,
    tensors_in,
)


@dataclass(frozen=True)
class Record:
    logits: Tensor
    name: str


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def samples(n: int = 5) -> ModelInputs:
    ids = torch.arange(3 * n).view(n, 3)
    return ModelInputs((ids,), {"mask": ids > 2, "images": [torch.ones(2, i) for i in range(n)]})


@pytest.mark.parametrize("kind", [Record, Pair, OrderedDict, list, tuple])
def test_tensors_are_mapped_in_whatever_holds_them(kind: type) -> None:
    x = torch.ones(2)
    value = {
        Record: lambda: Record(x, "a"),
        Pair: lambda: Pair(x, x),
        OrderedDict: lambda: OrderedDict(a=x, b=(x, None)),
        list: lambda: [x, 3],
        tuple: lambda: (x, {"a": x}),
    }[kind]()
    mapped = map_tensors(lambda t: t + 1, value)
    assert type(mapped) is kind
    assert all(torch.equal(t, x + 1) for t in tensors_in(mapped))
    assert all(torch.equal(t, x) for t in tensors_in(value))  # a copy
    assert same(value, value)
    assert not same(value, mapped)


def test_inputs_act_as_a_batch() -> None:
    x = samples()
    assert (len(x), count(x)) == (5, 5)
    assert same(join([x[:2], x[2:]]), x)
    assert same(join(split(x, 2)), x)
    chosen = take(x, torch.tensor([4, 0]))
    assert chosen.args[0].tolist() == [[12, 13, 14], [0, 1, 2]]
    assert [image.shape[1] for image in chosen.kwargs["images"]] == [4, 0]
    moved = x.to(torch.float64)
    assert (moved.args[0].dtype, moved.kwargs["images"][0].dtype) == (torch.int64, torch.float64)
    assert call(lambda *args, **kwargs: (len(args), [*kwargs]), x) == (1, ["mask", "images"])


def test_a_batch_is_called_as_its_loader_gives_it() -> None:
    x = torch.ones(2, 3)
    assert as_samples(x) is x
    assert as_samples((x, x)).args == (x, x)
    assert as_samples({"a": x}).kwargs == {"a": x}
    assert as_samples([x, x]).args == ([x, x],)


def test_inputs_are_described_and_made_again() -> None:
    x = torch.arange(3.0)
    for args in ((samples(),), (x, None, (x + 1, [x, x])), ((x, x),), (x, {"a": (x, 2.5)}, "b")):
        inputs = ModelInputs(args, {"mask": None, "past": (x, (x, x))})
        stored = json.loads(json.dumps(structure_of(inputs)))
        again = from_structure(stored, dict(named_tensors(inputs)))
        assert same(again, inputs)
        assert structure_of(again) == structure_of(inputs)
    assert from_structure(structure_of(x), dict(named_tensors(x))) is x


def test_objects_are_no_plain_values() -> None:
    assert is_plain({"a": (torch.ones(1), None, 2.5)})
    assert not is_plain((torch.ones(1), object()))
