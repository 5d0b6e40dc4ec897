"""A cache of activations: plans that begin with the same choices share those of the prefix.

A plan is scored by running the network on fixed batches. The inputs of a switch depend only on the
choices before it, so they are cached, and another plan with the same prefix runs from that switch
on, if the network can be entered there (`updp.supernet.partial`).
"""

import logging
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from updp.blocks.nested import Samples
from updp.supernet import Inputs, Resumable, Supernet, bytes_of, copied
from updp.tasks import CLASSIFICATION, Task
from updp.training.batchnorm import norms

_log = logging.getLogger(__name__)
_PLANS = 8  # number of plans whose activations must fit into the memory allowed

Prefix = tuple[str, ...]  # choices of the first switches, in the order of their calls


@dataclass
class _Entrance:
    """A switch's inputs under one prefix, by batch, and the BatchNorms' statistics before it."""

    inputs: dict[Hashable, Inputs] = field(default_factory=dict)
    statistics: list[list[Tensor]] = field(default_factory=list)
    bytes: int = 0


class PrefixCache:
    """Runs the net like `task.run`, reusing activations of plans that begin with the same choices.

    For each plan, inside `with cache.plan():`, first run all calibration batches (for every plan
    or for none), then call `calibrated()`, then run the batches to score. A key must always mean
    the same images.
    """

    def __init__(
        self,
        net: Supernet,
        megabytes: int,
        images: int,
        example: Samples,
        task: Task = CLASSIFICATION,
    ) -> None:
        """Find the switches at which the network can be entered.

        Args:
            net: the supernet, in evaluation mode.
            megabytes: memory for activations; 0 turns the cache off.
            images: number of images in all batches.
            example: some of the images (N, C, H, W), or other inputs.
            task: defines which outputs count.
        """
        self.net, self.bound, self._task = net, megabytes * 2**20, task
        self._run = Resumable(net, list(net.switches.values()), task.run)
        self._order: list[str] = []  # names of the switches, ordered by their first call
        self._first: list[int] = []  # number of that first call, among the calls of all units
        self._enterable: dict[int, bool] = {}  # by position in the order
        self._known: OrderedDict[Prefix, _Entrance] = OrderedDict()  # least recently used first
        self._new: dict[Prefix, _Entrance] = {}
        self._plan: Prefix = ()
        self._start: Prefix | None = None
        self._calibrating = False
        self._has_statistics = False  # whether this plan ran calibration batches
        # Entrances whose inputs are cached: number of the call to position of its switch.
        self._kept = self._choose_entrances(example, images) if self.bound else {}

    @contextmanager
    def plan(self) -> Iterator[None]:
        """Run the plan chosen in the net from its longest cached prefix."""
        self._plan, self._new = tuple(self.net.switches[n].choice for n in self._order), {}
        self._calibrating, self._has_statistics = True, False
        lengths = [n for n in range(len(self._plan), -1, -1) if self._enterable.get(n)]
        self._start = next((p for n in lengths if (p := self._plan[:n]) in self._known), None)
        if self._start is not None:
            self._known.move_to_end(self._start)
        yield
        self._known.update(self._new)
        self._new = {}
        total = sum(entrance.bytes for entrance in self._known.values())
        while total > self.bound:
            total -= self._known.popitem(last=False)[1].bytes

    def growth(self, plans: int, total: int) -> int:
        """Further bytes of activations for `total` plans, extrapolated from `plans`.

        Together with those already cached it is at most the memory bound.
        """
        used = sum(entrance.bytes for entrance in self._known.values())
        return max(0, min(self.bound, used * total // max(plans, 1)) - used)

    def __call__(self, key: Hashable, images: Samples) -> Any:
        """The relevant outputs for images (N, C, H, W), or for other inputs."""
        if not self._kept:
            return self._task.run(self.net, images)
        self._has_statistics |= self._calibrating
        start = self._start
        if start is not None and key in self._known[start].inputs:
            outputs, seen = self._enter(images, len(start), self._known[start].inputs[key])
        else:
            outputs, seen = self._enter(images)
        for position, inputs in seen.items():
            self._keep(self._plan[:position], key, inputs)
        # Not during calibration, because a norm in training mode would update its statistics twice.
        if not self._calibrating:
            self._try_entrances(seen, images, outputs)
        return outputs

    def calibrated(self) -> None:
        """Complete the statistics after calibration: norms before the entrance did not run."""
        self._calibrating = False
        if not self._has_statistics:
            return
        found = norms(self.net)
        if self._start is not None:
            for norm, kept in zip(found, self._known[self._start].statistics, strict=True):
                if norm.num_batches_tracked == 0:  # it did not run
                    for buffer, value in zip(norm.buffers(False), kept, strict=True):
                        buffer.copy_(value)
        statistics = [[buffer.clone() for buffer in norm.buffers(False)] for norm in found]
        for entrance in self._new.values():
            entrance.statistics = statistics

    def _choose_entrances(self, images: Samples, total: int) -> dict[int, int]:
        """Every n-th switch in the order of calls, such that several plans fit into memory."""
        names = {id(switch): name for name, switch in self.net.switches.items()}
        sizes: list[float] = []

        def observe(number: int, unit: nn.Module, args: Inputs) -> None:
            name = names.get(id(unit))
            if name is not None and name not in self._order:
                self._order.append(name)
                self._first.append(number)
                sizes.append(bytes_of(args) / len(images) * total)

        self._run.run(images, observe)
        step = next(
            (n for n in range(1, len(sizes) + 1) if sum(sizes[::n]) <= self.bound / _PLANS), None
        )
        if step is None:
            _log.info("search.reuse_mb is too small to share activations between plans")
        return {} if step is None else {self._first[p]: p for p in range(0, len(sizes), step)}

    def _enter(
        self, images: Samples, position: int | None = None, inputs: Inputs | None = None
    ) -> tuple[Any, dict[int, Inputs]]:
        """Run the net, perhaps from a position on; also return the inputs at later positions."""
        seen: dict[int, Inputs] = {}
        start = -1 if position is None else self._first[position]

        def observe(number: int, unit: nn.Module, args: Inputs) -> None:
            at = self._kept.get(number)
            if at is not None and number != start and self._enterable.get(at, True):
                seen[at] = copied(args)

        return self._run.run(images, observe, max(start, 0), inputs), seen

    def _try_entrances(self, seen: dict[int, Inputs], images: Samples, outputs: Any) -> None:
        """Test whether the network can be entered at positions that were not tested yet."""
        for position, inputs in seen.items():
            if position not in self._enterable:
                first = self._first[position]
                self._enterable[position] = self._run.can_enter(first, inputs, images, outputs)

    def _keep(self, prefix: Prefix, key: Hashable, inputs: Inputs) -> None:
        entrance = self._known.get(prefix) or self._new.get(prefix)
        # An entrance made after calibration would lack the calibration batches, if there are any.
        if entrance is None and (self._calibrating or not self._has_statistics):
            entrance = self._new[prefix] = _Entrance()
        if entrance is not None and key not in entrance.inputs:
            entrance.inputs[key] = inputs
            entrance.bytes += bytes_of(inputs)
