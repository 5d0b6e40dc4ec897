"""Partial forward passes: a network resumed at one of its modules from that module's inputs.

The network needs no description. Its own forward runs, but each module called before the entry
computes nothing and returns a tensor of the right shape full of NaNs, and the entry point takes its
inputs from a cache. Whether a network can be resumed at a module is tested: the output must be the
same bit by bit, which shows that nothing else comes from before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks.modules import UserCodeError, call_user_code, hooks
from updp.blocks.nested import Samples, is_plain, map_leaves, map_tensors, same, tensors_in
from updp.blocks.nested import call as call_model

_log = logging.getLogger(__name__)

Inputs = tuple[Any, ...]  # the positional arguments of a module
Observer = Callable[[int, nn.Module, Inputs], None]  # a call's number, its module, its inputs
Shapes = tuple[torch.Size, ...]
Runner = Callable[[nn.Module, Samples], Any]  # runs a network; the outputs that count


class Resumable:
    """Runs `net` whole, or from an entry point on, which is a call of one of its modules `marks`.

    Units are the marks and the largest modules without a mark inside; their calls are numbered.
    """

    def __init__(
        self, net: nn.Module, marks: Collection[nn.Module], run: Runner = call_model
    ) -> None:
        self.net, self._run = net, run
        self._units = list(
            dict.fromkeys(_units(net, set(marks), _inside(marks)))
        )  # shared ones once
        # Functions that make placeholder outputs, by shapes of the input and number of the call.
        self._outputs: dict[Shapes, dict[int, Callable[[], Any]]] = {}

    def run(
        self, images: Samples, observe: Observer, entry: int = 0, inputs: Inputs | None = None
    ) -> Any:
        """Run the network on `images` (N, C, H, W), or other inputs.

        Args:
            images: the whole input, even if most of the network is skipped.
            observe: called before each call, starting with the entry.
            entry: first call to compute; an earlier run on as many images must have reached it.
            inputs: cached inputs of that call, which gets a copy.
        """
        shapes = tuple(tensor.shape for tensor in tensors_in(images))
        outputs = self._outputs.setdefault(shapes, {})
        count, is_inside = 0, False

        def call(unit: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal count, is_inside
            if is_inside:  # called by a unit; skipping that unit skips it, too
                return forward(*args, **kwargs)
            number, count = count, count + 1
            if number < entry:
                return outputs[number]()
            if number == entry and inputs is not None:
                args = copied(inputs)
            observe(number, unit, args)
            is_inside = True
            try:
                output = forward(*args, **kwargs)
            finally:
                is_inside = False
            outputs[number] = _placeholder(output)
            return output

        with self._replaced_forwards(call):
            return self._run(self.net, images)

    def can_enter(
        self,
        entry: int,
        inputs: Inputs,
        images: Samples,
        output: Any,
        later: Mapping[int, Inputs] | None = None,
    ) -> bool:
        """Whether a run from `inputs` at call `entry` gives the `output` of a run on `images`.

        The calls in `later`, by number, must get the same inputs, too: if a pruned block ignores
        the output of a module, the network's output says nothing about that module's inputs.
        """
        differ: list[int] = []

        def observe(number: int, unit: nn.Module, args: Inputs) -> None:
            if later and number in later and not same(args, later[number]):
                differ.append(number)

        try:
            resumed = call_user_code(self.run, images, observe, entry, inputs)
        except UserCodeError as error:  # the code read a placeholder; the network can run whole
            _log.info("call %d of the network cannot be entered: %s", entry, error)
            return False
        if not (is_same := same(resumed, output) and not differ):
            _log.info("call %d of the network cannot be entered: more comes from before", entry)
        return is_same

    @contextmanager
    def _replaced_forwards(self, call: Callable[..., Any]) -> Iterator[None]:
        """Run `call(unit, forward, ...)` in place of each unit's `forward`.

        Hooks cannot do this: they change inputs and outputs, but the module still computes.
        """
        # A user (or accelerate) may have set a `forward` on the instance already.
        own = {unit: vars(unit)["forward"] for unit in self._units if "forward" in vars(unit)}

        def replacement(unit: nn.Module) -> Callable[..., Any]:
            forward = unit.forward
            return lambda *args, **kwargs: call(unit, forward, *args, **kwargs)

        try:
            for unit in self._units:
                vars(unit)["forward"] = replacement(unit)
            yield
        finally:
            for unit in self._units:
                vars(unit).pop("forward", None)
                if unit in own:
                    vars(unit)["forward"] = own[unit]


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


@contextmanager
def observed_inputs(observers: Mapping[nn.Module, Callable[..., None]]) -> Iterator[None]:
    """Call each module's observer with a copy of its inputs, at its first call only."""
    done = set()

    def hook(module: nn.Module, args: Inputs) -> None:
        if module not in done:
            done.add(module)
            observers[module](args[0].clone(), *args[1:])

    with hooks(module.register_forward_pre_hook(hook) for module in observers):
        yield


def copied(values: Any) -> Any:
    """A copy with cloned tensors, because modules may change their inputs in place."""
    return map_tensors(torch.clone, values)


def bytes_of(values: Any) -> int:
    """Memory of all tensors in `values`."""
    return sum(v.numel() * v.element_size() for v in tensors_in(values))


def _placeholder(output: Any) -> Callable[[], Any]:
    """A function that makes outputs like this one: new tensors, freed as the real ones would be."""

    def like(tensor: Tensor) -> partial[Tensor]:
        value = float("nan") if tensor.is_floating_point() else 0
        return partial(torch.full, tensor.shape, value, dtype=tensor.dtype, device=tensor.device)

    # An output such as a cache of keys and values cannot be imitated: its contents are unknown.
    plain, made = is_plain(output), map_tensors(like, output)

    def make() -> Any:
        if not plain:
            raise RuntimeError("an output holds more than tensors")
        return map_leaves(partial, lambda maker: maker(), made)

    return make


def _units(module: nn.Module, marks: set[nn.Module], inside: set[nn.Module]) -> Iterator[nn.Module]:
    if module in marks or (marks.isdisjoint(module.modules()) and module not in inside):
        yield module
        return
    for child in module.children():
        if child not in inside:
            yield from _units(child, marks, inside)


def _inside(marks: Collection[nn.Module]) -> set[nn.Module]:
    """Modules inside a mark, which run as part of it, even if a block lists them as children."""
    return {part for mark in marks for part in mark.modules() if part is not mark} - set(marks)
