"""Partial forward passes: a network resumed at one of its modules from that module's inputs.

Nothing needs to be known of the network. Its own forward runs, but each module called before the
entry returns, without computing, a tensor of the right shape full of NaNs, and the entry takes the
cached inputs in place of its own. Whether a network can be resumed somewhere is tried: the output
must be the same bit by bit, so nothing else may have come from before.
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
Runner = Callable[[nn.Module, Samples], Any]  # runs a network on a batch; the outputs that count


class Resumable:
    """Runs `net` whole, or from an entry point on: a call of one of `marks`, its modules.

    Units are the marks, and the largest modules that hold none; their calls are numbered.
    """

    def __init__(
        self, net: nn.Module, marks: Collection[nn.Module], run: Runner = call_model
    ) -> None:
        self.net, self._run = net, run
        self._units = list(
            dict.fromkeys(_units(net, set(marks), _inside(marks)))
        )  # shared ones once
        # Makers of placeholders of the outputs, by shapes of the input and number of the call.
        self._outputs: dict[Shapes, dict[int, Callable[[], Any]]] = {}

    def run(
        self, images: Samples, observe: Observer, entry: int = 0, inputs: Inputs | None = None
    ) -> Any:
        """Run the network on `images` (N, C, H, W), or whatever else it takes.

        Args:
            images: the whole input, also where most of the network is skipped.
            observe: called before each call from the entry on.
            entry: the first call to compute; an earlier run of as many images must have reached it.
            inputs: cached inputs of that call, which gets a copy.
        """
        shapes = tuple(tensor.shape for tensor in tensors_in(images))
        outputs = self._outputs.setdefault(shapes, {})
        count, is_inside = 0, False

        def call(unit: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal count, is_inside
            if is_inside:  # another unit runs it, and would not where it is skipped
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

        Calls of `later`, by number, must be given the same, too: where a pruned block reads
        nothing of what a module makes, the output tells nothing of that module's inputs.
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

        Hooks cannot do this: they change inputs and outputs, and the module computes all the same.
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

    Inputs are cached for all batches or, beyond the memory allowed, for the first ones only; the
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

        Without any batches, such an `example` tells what can be entered. `run` gives the outputs of
        the network that count.
        """
        self.batches, self.room = batches, megabytes * 2**20
        self._net = Resumable(net, modules, run)
        self._calls: dict[nn.Module, int] = {}  # the number of each module's first call
        self._enterable: set[nn.Module] = set()
        # By batch: the last module at which it can be entered, and a later one asked for.
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
        """Try which of the modules the network can be resumed at."""
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
    """Ends a forward at the module that was asked for."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs


@contextmanager
def observed_inputs(observers: Mapping[nn.Module, Callable[..., None]]) -> Iterator[None]:
    """Call each module's observer with a copy of its inputs, the first time that it runs."""
    done = set()

    def hook(module: nn.Module, args: Inputs) -> None:
        if module not in done:
            done.add(module)
            observers[module](args[0].clone(), *args[1:])

    with hooks(module.register_forward_pre_hook(hook) for module in observers):
        yield


def copied(values: Any) -> Any:
    """A copy in which tensors are cloned; modules may work in place on theirs."""
    return map_tensors(torch.clone, values)


def bytes_of(values: Any) -> int:
    """Memory of all tensors in `values`."""
    return sum(v.numel() * v.element_size() for v in tensors_in(values))


def _placeholder(output: Any) -> Callable[[], Any]:
    """A maker of outputs like this one: new tensors, which are freed as the real ones would be."""

    def like(tensor: Tensor) -> partial[Tensor]:
        value = float("nan") if tensor.is_floating_point() else 0
        return partial(torch.full, tensor.shape, value, dtype=tensor.dtype, device=tensor.device)

    # Of a cache of keys and values, say, it is not known what is in it.
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
    """Modules inside a mark, which run as part of it; a block may list them as children, too."""
    return {part for mark in marks for part in mark.modules() if part is not mark} - set(marks)
