"""Tensors in what models return, whatever holds them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.families import C, MlpBlock
from updp import UserError
from updp.blocks import find
from updp.blocks.values import difference, tensors_of


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def test_tensors_within_objects_are_compared() -> None:
    x, y = torch.ones(3), torch.zeros(3)
    held = SimpleNamespace(logits=x, more=[SimpleNamespace(last=y)], layer=nn.Linear(2, 2))
    held.itself = held
    assert [t is one for t, one in zip(tensors_of((held, x)), (x, y, x), strict=True)]
    assert difference(SimpleNamespace(logits=x), SimpleNamespace(logits=2 * x)) == 0.5
    assert difference(SimpleNamespace(), SimpleNamespace(logits=x)) == math.inf


class Answering(nn.Module):
    """A model that returns an object; what it holds is another each time where it is `noisy`."""

    def __init__(self, kind: type, noisy: bool = False) -> None:
        super().__init__()
        self.blocks, self.kind, self.noisy = nn.Sequential(MlpBlock(C), MlpBlock(C)), kind, noisy

    def forward(self, x: Tensor) -> object:
        y = self.blocks(x)
        return self.kind(logits=y + torch.rand_like(y) if self.noisy else y)


def test_a_model_that_returns_an_object_is_checked_as_a_whole() -> None:
    x = torch.randn(2, 7, C)
    assert len(find(Answering(SimpleNamespace).eval(), x).sites) == 2
    with pytest.raises(UserError, match="another output each time"):
        find(Answering(SimpleNamespace, noisy=True).eval(), x)


def test_a_model_that_returns_nothing_to_compare_is_refused() -> None:
    with pytest.raises(UserError, match=r"returns a Slotted, in which updp finds no tensor: let"):
        find(Answering(Slotted).eval(), torch.randn(2, 7, C))


def test_values_that_hold_one_another_are_looked_through_once() -> None:
    x = torch.randn(2)
    info: dict[str, object] = {"x": x}
    info["self"] = info
    chained: object = x
    for _ in range(3000):
        chained = SimpleNamespace(next=chained)
    assert [t is x for t in tensors_of((SimpleNamespace(info=info), chained))] == [True, True]
