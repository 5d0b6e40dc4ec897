"""Verification that a merged model computes what was trained."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from updp.blocks.copying import copy_module
from updp.blocks.modules import UserCodeError, call_user_code, hooks, seeded_input
from updp.blocks.nested import Samples, map_tensors
from updp.blocks.nested import call as call_model
from updp.blocks.precision import why_not_float64
from updp.errors import MergeError
from updp.recipe import MergeSettings
from updp.stages.checks import Check, as_type, compare_call, first_wrong, limit
from updp.supernet import KEEP, Supernet
from updp.tasks import CLASSIFICATION, Task

_log = logging.getLogger(__name__)

PARTS = 4  # two precisions, each on random inputs and real images


@torch.no_grad()
def verify(
    net: Supernet,
    images: Samples,
    settings: MergeSettings,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    sources: Sequence[str] = ("random", "images"),
    tick: Callable[[], None] = lambda: None,
    task: Task = CLASSIFICATION,
) -> list[Check]:
    """Compare subnet and merged model under the current choices, block by block and end to end.

    Each merged block gets the inputs of its subnet block. Deep networks may have rounding errors
    above the tolerance, merged or not, so `ROUNDINGS` times the subnet's own are accepted, too.

    A model may force float32 in its code. If it then fails in float64, or differs by more than the
    tolerance, each merged site is compared alone in float64 on its own inputs, and the whole model
    in float32 only; a warning says so.

    Args:
        net: the supernet, with the plan chosen.
        images: real images (N, C, H, W), or other inputs; random inputs have the same shape, and
            the real values if these are whole numbers, such as tokens.
        settings: the tolerance of each precision.
        dtypes: the precisions to compare in.
        sources: `random`, `images`, or both.
        tick: called after each precision and source.
        task: defines which results of the models are compared.

    Raises:
        MergeError: an error is above its tolerance; the message names the first one.
    """
    nets = {
        torch.float64: copy_module(net).double().eval(),
        torch.float32: copy_module(net).float().eval(),
    }
    inputs = {"random": _random(images), "images": images}
    comparison = _Comparison(nets, settings, task)
    checks: list[Check] = []
    for dtype in dtypes:
        merged = net.merged(dtype)
        for source in sources:
            checks += comparison.checks(dtype, merged, inputs[source], source)
            tick()
    if comparison.note:
        _log.warning(
            "%s whatever its weights are: each merged part was compared in float64 alone, and the "
            "whole model in float32 only",
            comparison.note,
        )
    return checks


class _Comparison:
    """Comparisons of a subnet, in each precision, with its merged model.

    `note` is the reason why the model does not compute in float64, once it is known.
    """

    def __init__(
        self, nets: Mapping[torch.dtype, Supernet], settings: MergeSettings, task: Task
    ) -> None:
        self.nets, self.task, self.note = nets, task, ""
        names = ("float64", "float32")
        self.tolerances = {name: getattr(settings, f"tolerance_{name}") for name in names}

    def checks(self, dtype: torch.dtype, merged: nn.Module, x: Samples, source: str) -> list[Check]:
        """Compare on one input in one precision. Raises MergeError: an error is too large."""
        if dtype == torch.float32:
            try:
                return self._accepted(self._whole(dtype, merged, x, source))
            except UserCodeError as error:
                raise MergeError(f"the merged model does not run: {error}") from error
        if not self.note:
            failure = None
            try:
                found = self._whole(dtype, merged, x, source)
                if first_wrong(found, self.tolerances) is None:
                    return found
            except UserCodeError as error:
                failure = error
            self.note = why_not_float64(self.nets[dtype].baseline(), x)
            if not self.note and failure is not None:
                name = str(dtype).removeprefix("torch.")
                raise MergeError(
                    f"the merged model does not run in {name}, {failure}: nothing was written"
                ) from failure
            if not self.note:
                return self._accepted(found)
        return self._accepted(_compare_sites(self.nets, x, source, self.note))

    def _whole(self, dtype: torch.dtype, merged: nn.Module, x: Samples, source: str) -> list[Check]:
        return _compare(
            self.nets, dtype, merged, map_tensors(partial(as_type, dtype), x), source, self.task
        )

    def _accepted(self, checks: list[Check]) -> list[Check]:
        """Return the checks. Raises MergeError for the first one above its tolerance."""
        if wrong := first_wrong(checks, self.tolerances):
            raise MergeError(
                f"merged {wrong.where or 'model'} differs from what was trained by "
                f"{wrong.error:.1e} ({wrong.dtype}, {wrong.source}; at most "
                f"{limit(wrong, self.tolerances):.0e}): nothing was written"
            )
        return checks


def _compare(
    nets: Mapping[torch.dtype, Supernet],
    dtype: torch.dtype,
    merged: nn.Module,
    x: Samples,
    source: str,
    task: Task,
) -> list[Check]:
    """Compare on one input in one precision. Raises UserCodeError if a model does not run."""
    subnet = nets[dtype]
    calls: dict[str, tuple[Any, Any]] = {}

    def record(name: str) -> Iterator[RemovableHandle]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[name] = map_tensors(torch.clone, (args, kwargs)), None  # blocks may work in place

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[name] = calls[name][0], map_tensors(torch.clone, output)

        module = subnet.model.get_submodule(name)
        # Ahead of the user's own hooks, which run again when the call is compared.
        yield module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
        yield module.register_forward_hook(after)

    with hooks(handle for name in subnet.pruned_blocks() for handle in record(name)):
        returned = call_user_code(task.returned, subnet, x)
    checks = []
    for name, (call, expected) in calls.items():
        olds = {kind: _inner_call(net.model.get_submodule(name)) for kind, net in nets.items()}
        new = _inner_call(merged.get_submodule(name))
        checks.append(compare_call(name, source, dtype, call, expected, new, olds))
    models = {kind: partial(task.returned, net) for kind, net in nets.items()}
    whole = compare_call(
        "", source, dtype, ((x,), {}), returned, partial(task.returned, merged), models
    )
    return [*checks, whole]


def _inner_call(block: nn.Module) -> Callable[..., Any]:
    """The call of a block as hooks see it, without what a `__call__` of its class adds."""
    return partial(nn.Module.__call__, block)


def _compare_sites(
    nets: Mapping[torch.dtype, Supernet], x: Samples, source: str, note: str
) -> list[Check]:
    """Compare each merged site alone in float64, on its inputs from a float32 run.

    A site that does not run in float64 is compared in float32.
    """
    calls: dict[str, tuple[Any, ...]] = {}

    def record(name: str) -> RemovableHandle:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            calls[name] = map_tensors(torch.clone, args)

        return subnet.switches[name].register_forward_pre_hook(before, prepend=True)

    subnet = nets[torch.float32]
    with hooks(record(n) for n, switch in subnet.switches.items() if switch.choice != KEEP):
        call_user_code(call_model, subnet, map_tensors(partial(as_type, torch.float32), x))
    checks = []
    for name, args in calls.items():
        olds = {kind: net.switches[name] for kind, net in nets.items()}
        for dtype in (torch.float64, torch.float32):
            new = nets[dtype].merged_site(name, dtype)
            call = map_tensors(partial(as_type, dtype), (args, {}))
            try:
                expected = call_user_code(olds[dtype], *map_tensors(torch.clone, call[0]))
                check = compare_call(name, source, dtype, call, expected, new, olds)
            except UserCodeError as error:
                if dtype == torch.float32:
                    raise MergeError(f"merged {name} does not run: {error}") from error
                continue
            checks.append(check.model_copy(update={"note": note}))
            break
    return checks


def _random(images: Samples) -> Samples:
    """Replace floating-point values by standard normal random numbers."""

    def drawn(x: Tensor) -> Tensor:
        return seeded_input(x.shape).to(x.device) if x.is_floating_point() else x

    random: Samples = map_tensors(drawn, images)
    return random
