"""Plans that begin alike share the activations of their beginning.

A plan is scored by running the network on fixed batches. What reaches a switch there depends on
the choices before it alone: it is kept, and a plan that begins alike is entered at that switch.
Nothing needs to be known of the network. Its own forward runs, but each module called before the
entrance returns, without computing, a tensor of the right shape full of NaNs, and the switch takes
what was kept in place of what it is given. Whether a network can be entered at a switch is tried
once: the logits must be the same bit by bit, so nothing else may have come from before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from updp.engine.statistics import norms
from updp.rewrite import Supernet, Switch

_PLANS = 8  # whose activations there is memory for

Prefix = tuple[str, ...]  # choices of the first switches, in the order of their calls
Watch = Callable[..., Any]


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
        value = float("nan") if self.dtype.is_floating_point else 0
        return torch.full(self.shape, value, dtype=self.dtype, device=self.device)


@dataclass
class _Entrance:
    """What reaches a switch under one prefix, by batch, and the BatchNorms' statistics then."""

    inputs: dict[Hashable, tuple[Any, ...]] = field(default_factory=dict)
    statistics: list[list[Tensor]] = field(default_factory=list)
    bytes: int = 0


class Replay:
    """Runs a supernet, plan after plan, as `net(images)` would.

    For each plan: `begin`, the calibration batches, `calibrated`, other batches, `end`. Batches are
    known by a key, which always means the same images.
    """

    def __init__(self, net: Supernet, megabytes: int, images: int, example: Tensor) -> None:
        """`images` is the number of images in all batches; `example` some of them (N, C, H, W)."""
        self.net, self.bound = net, megabytes * 2**20
        self.computed, self.shared = 0, 0  # calls of switches
        self._switches = {id(switch): name for name, switch in net.switches.items()}
        self._units = list(_units(net.model))
        self._order: list[str] = []  # the switches, by their first call
        self._first: list[int] = []  # and the number of that call among those of all units
        self._likes: dict[int, list[Any]] = {}  # each call's output, by number of images
        self._enterable: dict[int, bool] = {}  # by place in the order
        self._dummies: dict[_Like, Tensor] = {}
        self._known: OrderedDict[Prefix, _Entrance] = OrderedDict()
        self._new: dict[Prefix, _Entrance] = {}
        self._plan: Prefix = ()
        self._start: Prefix | None = None
        self._calibrating = False
        self._places = self._survey(example, images) if self.bound else {}

    def begin(self) -> None:
        """Another plan has been chosen: look for the longest beginning that is known."""
        self._plan, self._new = tuple(self.net.switches[n].choice for n in self._order), {}
        self._calibrating = True
        lengths = [n for n in range(len(self._plan), -1, -1) if self._enterable.get(n)]
        self._start = next((p for n in lengths if (p := self._plan[:n]) in self._known), None)
        if self._start is not None:
            self._known.move_to_end(self._start)

    def __call__(self, key: Hashable, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        if not self._places:
            return self.net(images)
        start, likes = self._start, self._likes.get(len(images))
        if start is not None and likes and key in self._known[start].inputs:
            logits, inputs = self._enter(len(start), self._known[start].inputs[key], images, likes)
        else:
            logits, inputs = self._whole(images)
        for place, values in inputs.items():
            self._keep(self._plan[:place], key, values)
        if not self._calibrating:
            self._try(inputs, images, logits)
        return logits

    def calibrated(self) -> None:
        """All statistics are known: those from before the entrance are what they were there."""
        self._calibrating = False
        found = norms(self.net)
        if self._start is not None:
            for norm, kept in zip(found, self._known[self._start].statistics, strict=True):
                if norm.num_batches_tracked == 0:  # it did not run
                    for buffer, value in zip(norm.buffers(False), kept, strict=True):
                        buffer.copy_(value)
        statistics = [[buffer.clone() for buffer in norm.buffers(False)] for norm in found]
        for entrance in self._new.values():
            entrance.statistics = statistics

    def end(self) -> None:
        """Keep what was recorded, and forget what was used longest ago."""
        self._known.update(self._new)
        self._new = {}
        total = sum(entrance.bytes for entrance in self._known.values())
        while total > self.bound:
            total -= self._known.popitem(last=False)[1].bytes

    def _survey(self, images: Tensor, total: int) -> dict[int, int]:
        """Learn the order of calls; choose places, by call, so few that several plans are kept."""
        sizes: list[float] = []
        count = 0

        def watch(unit: nn.Module, call: Watch, *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            name = self._switches.get(id(unit))
            if name is not None and name not in self._order and not kwargs:
                self._order.append(name)
                self._first.append(count)
                sizes.append(_bytes(args) / len(images) * total)
            count += 1
            return call(*args, **kwargs)

        with self._watched(watch):
            self.net(images)
        step = next(
            (n for n in range(1, len(sizes) + 1) if sum(sizes[::n]) <= self.bound / _PLANS), None
        )
        return {} if step is None else {self._first[p]: p for p in range(0, len(sizes), step)}

    def _whole(self, images: Tensor) -> tuple[Tensor, dict[int, tuple[Any, ...]]]:
        """Run everything; also what reached each place."""
        inputs: dict[int, tuple[Any, ...]] = {}
        likes: list[Any] = []

        def watch(unit: nn.Module, call: Watch, *args: Any, **kwargs: Any) -> Any:
            self._record(len(likes), args, inputs)
            self.computed += isinstance(unit, Switch)
            output = call(*args, **kwargs)
            likes.append(tree_map_only(Tensor, _Like.of, output))
            return output

        with self._watched(watch):
            logits = self.net(images)
        self._likes[len(images)] = likes
        return logits, inputs

    def _enter(
        self, place: int, given: tuple[Any, ...], images: Tensor, likes: list[Any]
    ) -> tuple[Tensor, dict[int, tuple[Any, ...]]]:
        """Run from a place on; also what reached later ones."""
        inputs: dict[int, tuple[Any, ...]] = {}
        entrance, count = self._first[place], 0

        def watch(unit: nn.Module, call: Watch, *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            number, count = count, count + 1
            if number < entrance:
                self.shared += isinstance(unit, Switch)
                return tree_map_only(_Like, self._dummy, likes[number])
            self.computed += isinstance(unit, Switch)
            if number == entrance:
                return call(*_copied(given))
            self._record(number, args, inputs)
            return call(*args, **kwargs)

        with self._watched(watch):
            return self.net(images), inputs

    def _try(self, inputs: dict[int, tuple[Any, ...]], images: Tensor, logits: Tensor) -> None:
        """Where it is not known yet whether the network can be entered, see."""
        for place, values in inputs.items():
            if place not in self._enterable:
                try:
                    again, _ = self._enter(place, values, images, self._likes[len(images)])
                    self._enterable[place] = torch.equal(again, logits)
                except (RuntimeError, TypeError, ValueError):  # it looked at what is not there
                    self._enterable[place] = False

    def _record(self, number: int, args: tuple[Any, ...], inputs: dict[int, Any]) -> None:
        place = self._places.get(number)
        if place is not None and self._enterable.get(place, True):
            inputs[place] = _copied(args)

    def _keep(self, prefix: Prefix, key: Hashable, values: tuple[Any, ...]) -> None:
        entrance = self._known.get(prefix) or self._new.get(prefix)
        if entrance is None and self._calibrating:  # a later one would lack what came before
            entrance = self._new[prefix] = _Entrance()
        if entrance is not None and key not in entrance.inputs:
            entrance.inputs[key] = values
            entrance.bytes += _bytes(values)

    def _dummy(self, like: _Like) -> Tensor:
        if like not in self._dummies:
            self._dummies[like] = like.dummy()
        return self._dummies[like]

    @contextmanager
    def _watched(self, watch: Watch) -> Iterator[None]:
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


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """The switches, and the largest modules that hold none."""
    holders = {
        id(m) for m in module.modules() if any(isinstance(inner, Switch) for inner in m.modules())
    }
    seen: set[int] = set()

    def walk(part: nn.Module) -> Iterator[nn.Module]:
        if id(part) in seen:
            return
        seen.add(id(part))
        if isinstance(part, Switch) or id(part) not in holders:
            yield part
            return
        for child in part.children():
            yield from walk(child)

    yield from walk(module)


def _copied(values: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, values)


def _bytes(values: Any) -> int:
    return sum(v.numel() * v.element_size() for v in tree_leaves(values) if isinstance(v, Tensor))
