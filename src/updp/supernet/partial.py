"""A network run from one of its modules on, with what reached that module before.

Nothing needs to be known of the network. Its own forward runs, but each module called before the
entrance returns, without computing, a tensor of the right shape full of NaNs, and the entrance
takes what was kept in place of what it is given. Whether a network can be entered somewhere is
tried: the outcome must be the same bit by bit, so nothing else may have come from before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

Inputs = tuple[Any, ...]  # what a module is called with
Observer = Callable[[int, nn.Module, Inputs], None]


@dataclass(frozen=True)
class _Like:
    """What a tensor looks like."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> _Like:
        return cls(tuple(tensor.shape), tensor.dtype, tensor.device)

    def dummy(self) -> Tensor:
        """A new one each time, so that it is freed as what it stands for would be."""
        value = float("nan") if self.dtype.is_floating_point else 0
        return torch.full(self.shape, value, dtype=self.dtype, device=self.device)


class Resumable:
    """Runs `net` whole or from an entrance on: one of `marks`, its modules.

    Units are the marks, and the largest modules that hold none; their calls are numbered.
    """

    def __init__(self, net: nn.Module, marks: Collection[nn.Module]) -> None:
        self.net = net
        self._units = list(_units(net, set(marks)))
        self._likes: dict[int, dict[int, Any]] = {}  # by number of images, each call's output

    def run(
        self, images: Tensor, seen: Observer, entrance: int = 0, given: Inputs | None = None
    ) -> Tensor:
        """The net's output for `images` (N, C, H, W).

        With `given`, a copy of it enters at the call of that number, which as many images must
        have reached before. `seen` is told of each call, from the entrance on, before it runs.
        """
        likes = self._likes.setdefault(len(images), {})
        count = 0

        def watch(unit: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            number, count = count, count + 1
            if number < entrance:
                return tree_map_only(_Like, _Like.dummy, likes[number])
            if number == entrance and given is not None:
                args = copied(given)
            seen(number, unit, args)
            output = call(*args, **kwargs)
            likes[number] = tree_map_only(Tensor, _Like.of, output)
            return output

        with self._watched(watch):
            output: Tensor = self.net(images)
        return output

    def can_enter(self, entrance: int, given: Inputs, images: Tensor, output: Tensor) -> bool:
        """Whether the same `output` comes of `given` there as of `images`."""
        try:
            again = self.run(images, lambda *_: None, entrance, given)
        except Exception:  # it looked at what is not there; whatever it says, it can run whole
            return False
        return torch.equal(again, output)

    @contextmanager
    def _watched(self, watch: Callable[..., Any]) -> Iterator[None]:
        """Let `watch(unit, forward, ...)` stand for the forward of each unit."""

        def standing(unit: nn.Module) -> Callable[..., Any]:
            call = unit.forward
            return lambda *args, **kwargs: watch(unit, call, *args, **kwargs)

        try:
            for unit in self._units:
                unit.__dict__["forward"] = standing(unit)
            yield
        finally:
            for unit in self._units:
                unit.__dict__.pop("forward", None)


def copied(values: Any) -> Any:
    """The same, with tensors of its own."""
    return tree_map_only(Tensor, torch.clone, values)


def bytes_of(values: Any) -> int:
    """Memory of all tensors in `values`."""
    return sum(v.numel() * v.element_size() for v in tree_leaves(values) if isinstance(v, Tensor))


def _units(module: nn.Module, marks: set[nn.Module]) -> Iterator[nn.Module]:
    """The marks, and the largest modules that hold none."""
    holders = {m for m in module.modules() if any(inner in marks for inner in m.modules())}
    seen: set[nn.Module] = set()

    def walk(part: nn.Module) -> Iterator[nn.Module]:
        if part in seen:
            return
        seen.add(part)
        if part in marks or part not in holders:
            yield part
            return
        for child in part.children():
            yield from walk(child)

    yield from walk(module)
