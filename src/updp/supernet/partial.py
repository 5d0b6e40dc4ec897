"""Partial forward passes: a network resumed at one of its modules from that module's inputs.

The network needs no description. Its own forward runs, but each module called before the entry
computes nothing and returns a tensor of the right shape full of NaNs, and the entry point takes its
inputs from a cache. Whether a network can be resumed at a module is tested: the output must be the
same bit by bit, which shows that nothing else comes from before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
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
