"""Plans that begin alike share the activations of their beginning.

A plan is scored by running the network on fixed batches. What reaches a switch there depends on
the choices before it alone: it is kept, and a plan that begins alike is entered at that switch,
where the network can be (`rewrite.resume`).
"""

import logging
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import Tensor, nn

from updp.supernet import Inputs, Resumable, Supernet, Switch, bytes_of, copied
from updp.training.batchnorm import norms

_log = logging.getLogger(__name__)
_PLANS = 8  # whose activations there is memory for

Prefix = tuple[str, ...]  # choices of the first switches, in the order of their calls


@dataclass
class _Entrance:
    """What reaches a switch under one prefix, by batch, and the BatchNorms' statistics then."""

    inputs: dict[Hashable, Inputs] = field(default_factory=dict)
    statistics: list[list[Tensor]] = field(default_factory=list)
    bytes: int = 0


class PrefixCache:
    """Runs a supernet, plan after plan, as `net(images)` would.

    For each plan: `begin`, the calibration batches, `calibrated`, other batches, `end`. Batches are
    known by a key, which always means the same images.
    """

    def __init__(self, net: Supernet, megabytes: int, images: int, example: Tensor) -> None:
        """`images` is the number of images in all batches; `example` some of them (N, C, H, W)."""
        self.net, self.bound = net, megabytes * 2**20
        self.computed, self.shared = 0, 0  # calls of switches
        self._switches = {id(switch): name for name, switch in net.switches.items()}
        self._run = Resumable(net, list(net.switches.values()))
        self._calls: list[int] = []  # the numbers of all calls of switches
        self._order: list[str] = []  # the switches, by their first call
        self._first: list[int] = []  # and the number of that call among those of all units
        self._enterable: dict[int, bool] = {}  # by place in the order
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
        start = self._start
        if start is not None and key in self._known[start].inputs:
            logits, inputs = self._from(images, len(start), self._known[start].inputs[key])
        else:
            logits, inputs = self._from(images)
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

        def seen(number: int, unit: nn.Module, args: Inputs) -> None:
            name = self._switches.get(id(unit))
            if name is None:
                return
            self._calls.append(number)
            if name not in self._order:
                self._order.append(name)
                self._first.append(number)
                sizes.append(bytes_of(args) / len(images) * total)

        self._run.run(images, seen)
        step = next(
            (n for n in range(1, len(sizes) + 1) if sum(sizes[::n]) <= self.bound / _PLANS), None
        )
        if step is None:
            _log.info("search.reuse_mb is too small to share activations between plans")
        return {} if step is None else {self._first[p]: p for p in range(0, len(sizes), step)}

    def _from(
        self, images: Tensor, place: int | None = None, given: Inputs = ()
    ) -> tuple[Tensor, dict[int, Inputs]]:
        """Run everything, or from a place on; also what reached the places behind it."""
        inputs: dict[int, Inputs] = {}
        start = -1 if place is None else self._first[place]

        def seen(number: int, unit: nn.Module, args: Inputs) -> None:
            self.computed += isinstance(unit, Switch)
            at = self._places.get(number)
            if at is not None and number != start and self._enterable.get(at, True):
                inputs[at] = copied(args)

        self.shared += sum(number < start for number in self._calls)
        if place is None:
            return self._run.run(images, seen), inputs
        return self._run.run(images, seen, start, given), inputs

    def _try(self, inputs: dict[int, Inputs], images: Tensor, logits: Tensor) -> None:
        """Where it is not known yet whether the network can be entered, see."""
        for place, given in inputs.items():
            if place not in self._enterable:
                first = self._first[place]
                self._enterable[place] = self._run.can_enter(first, given, images, logits)

    def _keep(self, prefix: Prefix, key: Hashable, values: Inputs) -> None:
        entrance = self._known.get(prefix) or self._new.get(prefix)
        if entrance is None and self._calibrating:  # a later one would lack what came before
            entrance = self._new[prefix] = _Entrance()
        if entrance is not None and key not in entrance.inputs:
            entrance.inputs[key] = values
            entrance.bytes += bytes_of(values)
