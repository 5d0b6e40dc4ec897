"""Visit modules of a network in order, each from the cached inputs of the one before."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import nn

from updp.blocks.nested import Samples
from updp.blocks.nested import call as call_model
from updp.supernet.partial import Inputs, Resumable, Runner, bytes_of, copied


class Walk:
    """Visits modules of a network in order, each resumed from the cached inputs of the last one.

    If the inputs of all batches exceed the memory allowed, only the first batches are cached; the
    others run from an earlier entry point or from the start.
    """

    def __init__(
        self,
        net: nn.Module,
        modules: Collection[nn.Module],
        batches: Sequence[Samples],
        megabytes: int,
        example: Samples | None = None,
        run: Runner = call_model,
    ) -> None:
        """Prepare to visit `modules` on `batches` of images (N, C, H, W), or other inputs.

        If there are no batches, `example` is the input to find the entry points with. `run` returns
        the outputs of the network that count.
        """
        self.batches, self.room = batches, megabytes * 2**20
        self._net = Resumable(net, modules, run)
        self._calls: dict[nn.Module, int] = {}  # the number of each module's first call
        self._enterable: set[nn.Module] = set()
        # By batch: the last module where the run can resume, and a later one that was asked for.
        self._cached: list[list[tuple[nn.Module, Inputs]]] = [[] for _ in batches]
        example = batches[0] if example is None else example
        self._find_entries(set(modules), example[:2])

    def to(self, module: nn.Module) -> Iterator[Inputs]:
        """Inputs of the module's first call, batch by batch.

        The modules that run before the previously visited one must not have changed since. Raises
        NotReached where the network does not call it for a batch.
        """
        for number, images in enumerate(self.batches):
            cached = self._cached[number]
            if cached and cached[-1][0] is module:
                yield copied(cached[-1][1])
                continue
            cached = [(m, inputs) for m, inputs in cached if m in self._enterable]
            reached = module, self._inputs_of(module, images, cached)
            wanted = [reached] if module in self._enterable else [*cached, reached]
            others = sum(map(bytes_of, self._cached)) - bytes_of(self._cached[number])
            self._cached[number] = wanted if others + bytes_of(wanted) <= self.room else cached
            yield copied(reached[1])

    def output(self, number: int) -> Any:
        """The output for batch `number`, resumed at the module visited last, or before it."""
        entries = [(self._calls[m], x) for m, x in self._cached[number] if m in self._enterable]
        return self._net.run(
            self.batches[number], lambda *_: None, *(entries[-1] if entries else ())
        )

    def _find_entries(self, modules: set[nn.Module], images: Samples) -> None:
        """Find the modules at which the network can be resumed, by trying each."""
        found: dict[nn.Module, Inputs] = {}

        def observe(number: int, unit: nn.Module, args: Inputs) -> None:
            if unit in modules and unit not in found:
                self._calls[unit], found[unit] = number, copied(args)

        output = self._net.run(images, observe)
        later = {self._calls[module]: inputs for module, inputs in found.items()}
        for module, inputs in found.items():
            if self._net.can_enter(self._calls[module], inputs, images, output, later):
                self._enterable.add(module)

    def _inputs_of(
        self, module: nn.Module, images: Samples, cached: list[tuple[nn.Module, Inputs]]
    ) -> Inputs:
        """Inputs of `module`, resuming from the cached entry point if there is one."""

        def observe(number: int, unit: nn.Module, args: Inputs) -> None:
            if unit is module:
                raise _Reached(copied(args))

        entry = [(self._calls[m], inputs) for m, inputs in cached]
        try:
            self._net.run(images, observe, *(entry[0] if entry else ()))
        except _Reached as reached:
            return reached.inputs
        raise NotReached(f"{type(module).__name__} was not reached")


class NotReached(Exception):
    """A forward did not run a module: the network calls it for some values only."""


class _Reached(Exception):
    """Stops a forward at the requested module."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
