"""A network run in part: from one of its modules on, with what reached that module before.

Nothing needs to be known of the network. Its own forward runs, but each module called before the
entrance returns, without computing, a tensor of the right shape full of NaNs, and the entrance
takes what was kept in place of what it is given. Whether a network can be entered somewhere is
tried: the outcome must be the same bit by bit, so nothing else may have come from before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from updp.blocks.modules import UserCodeError, call_user_code, hooks

_log = logging.getLogger(__name__)

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
            again = call_user_code(self.run, images, lambda *_: None, entrance, given)
        except UserCodeError as error:  # it looked at what is not there, but can run whole
            _log.info("call %d of the network cannot be entered: %s", entrance, error)
            return False
        if not (same := torch.equal(again, output)):
            _log.info("call %d of the network cannot be entered: more comes from before", entrance)
        return same

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


class Walk:
    """Runs `net` on `batches` of images (N, C, H, W) until one of its `modules`, then the next.

    What reaches a module is kept, unless that takes more than so many `megabytes` for all batches;
    from there on it goes to the next one, where the network can be entered there.
    """

    def __init__(
        self,
        net: nn.Module,
        modules: Collection[nn.Module],
        batches: Sequence[Tensor],
        megabytes: int,
    ) -> None:
        self.batches, self.room = batches, megabytes * 2**20
        self._net = Resumable(net, modules)
        self._calls: dict[nn.Module, int] = {}  # the number of each one's first
        self._enterable: set[nn.Module] = set()
        # By batch: the last module at which it can be entered, and a later one asked for.
        self._kept: list[list[tuple[nn.Module, Inputs]]] = [[] for _ in batches]
        self._try(set(modules), batches[0][:2])

    def to(self, module: nn.Module) -> Iterator[Inputs]:
        """The arguments of the module's first call, batch by batch.

        What runs before the module that was asked for before must be as it was then.
        """
        for number, images in enumerate(self.batches):
            kept = self._kept[number]
            if kept and kept[-1][0] is module:
                yield copied(kept[-1][1])
                continue
            kept = [(m, given) for m, given in kept if m in self._enterable]
            given = self._reaching(module, images, kept)
            now = [(module, given)] if module in self._enterable else [*kept, (module, given)]
            others = sum(map(bytes_of, self._kept)) - bytes_of(self._kept[number])
            self._kept[number] = now if others + bytes_of(now) <= self.room else kept
            yield copied(given)

    def _try(self, modules: set[nn.Module], images: Tensor) -> None:
        """See where the network can be entered."""
        found: dict[nn.Module, Inputs] = {}

        def seen(number: int, unit: nn.Module, args: Inputs) -> None:
            if unit in modules and unit not in found:
                self._calls[unit], found[unit] = number, copied(args)

        output = self._net.run(images, seen)
        for module, given in found.items():
            if self._net.can_enter(self._calls[module], given, images, output):
                self._enterable.add(module)

    def _reaching(
        self, module: nn.Module, images: Tensor, kept: list[tuple[nn.Module, Inputs]]
    ) -> Inputs:
        """What the module is given, from the entrance on that is kept, if one is."""

        def seen(number: int, unit: nn.Module, args: Inputs) -> None:
            if unit is module:
                raise _Reached(copied(args))

        entrance = [(self._calls[m], given) for m, given in kept]
        try:
            self._net.run(images, seen, *(entrance[0] if entrance else ()))
        except _Reached as reached:
            return reached.given
        raise AssertionError(f"{type(module).__name__} was not reached")


class _Reached(Exception):
    """Ends a forward at the module that was asked for."""

    def __init__(self, given: Inputs) -> None:
        super().__init__()
        self.given = given


@contextmanager
def tapped(seen: Mapping[nn.Module, Callable[..., None]]) -> Iterator[None]:
    """Call `seen` of a module with a copy of its arguments, the first time that it runs."""
    done = set()

    def hook(module: nn.Module, args: Inputs) -> None:
        if module not in done:
            done.add(module)
            seen[module](args[0].clone(), *args[1:])

    with hooks(module.register_forward_pre_hook(hook) for module in seen):
        yield


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
