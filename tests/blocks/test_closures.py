"""Functions that a model keeps and that use it: hooks, wrapped forwards, lambdas."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.blocks.test_rewrite_check import Reader
from tests.families import images
from tests.road import prune_half
from updp.blocks.copying import copy_module
from updp.blocks.values import difference

RECORD: dict[int, Tensor] = {}  # as MiDaS has it: a global that the model has, too


def note_globally(index: int) -> Callable[..., None]:
    def hook(module: nn.Module, x: Any, y: Tensor) -> None:
        RECORD[index] = y

    return hook


class Noted(Reader):
    """A model that reads what hooks on its blocks note."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.record: dict[int, Tensor] = RECORD if kind == "global" else {}
        for i, block in enumerate(self.blocks):
            block.register_forward_hook(self._hook(kind, i))

    def _hook(self, kind: str, index: int) -> Callable[..., Any]:
        def note(module: nn.Module, x: Any, y: Tensor) -> None:
            self.record[index] = y

        def note_as(index: int, module: nn.Module, x: Any, y: Tensor) -> None:
            note(module, x, y)

        if kind == "global":
            return note_globally(index)
        return functools.partial(note_as, index) if kind == "partial" else note

    def forward(self, x: Tensor) -> Tensor:
        self.record.clear()
        y = super().forward(x)
        return y + sum(f.mean() for f in self.record.values())


class Wrapped(Reader):
    """Forwards of blocks that were wrapped one by one, and a parameter that a lambda reads."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.scaled = lambda x: x * self.gain
        for block in self.blocks:
            block.forward = self._wrap(block.forward)

    @staticmethod
    def _wrap(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        @functools.wraps(forward)
        def wrapped(x: Tensor) -> Tensor:
            return forward(x) * 0.5

        return wrapped

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.scaled(x))


KINDS: dict[str, Callable[[], nn.Module]] = {
    **{kind: functools.partial(Noted, kind) for kind in ("own", "partial", "global")},
    "wrapped": Wrapped,
}


@pytest.mark.parametrize("kind", KINDS)
def test_functions_follow_a_copy_and_the_model_is_pruned(kind: str) -> None:
    torch.manual_seed(0)
    net, x = KINDS[kind]().eval(), images()
    with torch.no_grad():
        expected = net(x)
        copied = copy_module(copy_module(net))
        for tensor in net.parameters():
            tensor.zero_()
        assert difference(copied(x), expected) == 0
        prune_half(copied, x, pickles=False)
        assert difference(copied(x), expected) == 0


def test_functions_that_share_a_variable_still_do_in_a_copy() -> None:
    net = nn.Linear(2, 2)
    count = 0

    def add(*_: object) -> None:
        nonlocal count
        count += net.in_features

    def again(times: int) -> int:
        return count + len(net.calls) if times == 0 else again(times - 1)

    net.calls, net.again = [0], again
    net.register_forward_hook(add)
    copied = copy_module(net)
    copied.calls.append(0)
    copied(torch.zeros(1, 2))
    assert (copied.again(2), net.again(2), count) == (4, 1, 0)


def test_functions_that_do_not_use_the_model_stay_the_same() -> None:
    net, other = nn.Linear(2, 2), [1]
    net.function, net.partial = (lambda: other), functools.partial(print, 1)
    copied = copy_module(net)
    assert copied.function is net.function
    assert copied.partial.func is print
