"""Verification that a merged model computes what was trained."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from updp.blocks.copying import copy_module
from updp.blocks.modules import UserCodeError, call_user_code, hooks, seeded_input
from updp.blocks.nested import Samples, map_tensors
from updp.blocks.nested import call as call_model
from updp.blocks.precision import why_not_float64
from updp.blocks.values import tensors_of
from updp.errors import MergeError
from updp.io.records import Record
from updp.recipe import MergeSettings
from updp.supernet import KEEP, Supernet
from updp.tasks import CLASSIFICATION, Task

_log = logging.getLogger(__name__)

# A merged operator sums in another order, which rounds differently but hardly worse: an error of
# up to this many times the subnet's own rounding error is accepted.
ROUNDINGS = 4
PARTS = 4  # two precisions, each on random inputs and real images


class Check(BaseModel, frozen=True):
    """Relative L2 error of one block, or of the logits (`where` is empty), on one input.

    `rounding` estimates the error that the subnet itself makes in this precision. A `note` says why
    `where` is a site, compared alone, on the inputs that it has in float32.
    """

    where: str
    dtype: str
    source: str
    error: float
    rounding: float
    border: float | None = None
    interior: float | None = None
    note: str = ""


class Checks(Record):
    """The comparisons of merged model and subnet."""

    FILE: ClassVar[str] = "merge/checks.json"
    rows: tuple[Check, ...]


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
    """Compare subnet and merged model under the present choices, block by block and end to end.

    Each merged block gets the inputs of its subnet block. Deep networks may round by more than the
    tolerance, merged or not, so an error of `ROUNDINGS` times the subnet's own is accepted, too.

    A model may compute in float32 by itself, whatever its weights are. Where it then fails in
    float64, or differs by more than the tolerance, each merged site is compared in float64 on its
    own inputs, and the whole in float32 only; a warning says so.

    Args:
        net: the supernet, with the plan chosen.
        images: real images (N, C, H, W), or other inputs; random input has their shape, and
            their own values where those are whole numbers, such as tokens.
        settings: the tolerance of each precision.
        dtypes: the precisions to compare in.
        sources: `random`, `images`, or both.
        tick: called after each precision and source.
        task: says what of the merged model's results is compared.

    Raises:
        MergeError: an error is above its tolerance; the first is named.
    """
    nets = {
        torch.float64: copy_module(net).double().eval(),
        torch.float32: copy_module(net).float().eval(),
    }
    inputs = {"random": _random(images), "images": images}
    checks: list[Check] = []
    note = ""
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        merged = net.merged(dtype)
        tolerances = {n: getattr(settings, f"tolerance_{n}") for n in ("float64", "float32")}
        for source in sources:
            x, to_type = inputs[source], partial(_as, dtype)
            found, wrong, failure = None, None, ""
            if not (note and dtype == torch.float64):
                try:
                    found = _compare(nets, dtype, merged, _mapped(x, to_type), source, task)
                    wrong = _first_wrong(found, tolerances)
                except UserCodeError as error:
                    if dtype == torch.float32:
                        raise MergeError(f"the merged model does not run: {error}") from error
                    failure = str(error)
            if dtype == torch.float64 and (found is None or wrong):
                note = note or why_not_float64(nets[dtype].baseline(), x)
                if note:
                    found = _compare_sites(nets, x, source, note)
                    wrong = _first_wrong(found, tolerances)
            if wrong or found is None:
                raise MergeError(
                    f"merged {wrong.where or 'model'} differs from what was trained by "
                    f"{wrong.error:.1e} ({wrong.dtype}, {source}; at most "
                    f"{_limit(wrong, tolerances):.0e}): nothing was written"
                    if wrong
                    else f"the merged model does not run in {name}, {failure}: nothing was written"
                )
            checks += found
            tick()
    if note:
        _log.warning(
            "%s whatever its weights are: each merged part was compared in float64 alone, and the "
            "whole model in float32 only",
            note,
        )
    return checks


def _limit(check: Check, tolerances: Mapping[str, float]) -> float:
    return max(tolerances[check.dtype], ROUNDINGS * check.rounding)


def _first_wrong(checks: Sequence[Check], tolerances: Mapping[str, float]) -> Check | None:
    # So written, NaN is wrong as well.
    return next((c for c in checks if not c.error <= _limit(c, tolerances)), None)


def _compare(
    nets: Mapping[torch.dtype, Supernet],
    dtype: torch.dtype,
    merged: nn.Module,
    x: Samples,
    source: str,
    task: Task,
) -> list[Check]:
    """Compare on one input in one precision. Raises UserCodeError where a model does not run."""
    subnet = nets[dtype]
    calls: dict[str, tuple[Any, Any]] = {}

    def record(name: str) -> Iterator[RemovableHandle]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[name] = _mapped((args, kwargs), torch.clone), None  # the block may work in place

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[name] = calls[name][0], _mapped(output, torch.clone)

        module = subnet.model.get_submodule(name)
        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)

    with hooks(handle for name in subnet.pruned_blocks() for handle in record(name)):
        returned = call_user_code(task.returned, subnet, x)
    checks = []
    for name, (call, expected) in calls.items():
        olds = {kind: net.model.get_submodule(name) for kind, net in nets.items()}
        new = merged.get_submodule(name)
        checks.append(_check(name, source, dtype, call, expected, new, olds))
    models = {kind: partial(task.returned, net) for kind, net in nets.items()}
    whole = _check("", source, dtype, ((x,), {}), returned, partial(task.returned, merged), models)
    return [*checks, whole]


def _compare_sites(
    nets: Mapping[torch.dtype, Supernet], x: Samples, source: str, note: str
) -> list[Check]:
    """Compare each merged site alone, in float64 on its inputs in a run in float32.

    A site that does not run in float64 is compared in float32.
    """
    calls: dict[str, tuple[Any, ...]] = {}

    def record(name: str) -> RemovableHandle:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            calls[name] = _mapped(args, torch.clone)

        return subnet.switches[name].register_forward_pre_hook(before)

    subnet = nets[torch.float32]
    with hooks(record(n) for n, switch in subnet.switches.items() if switch.choice != KEEP):
        call_user_code(call_model, subnet, _mapped(x, partial(_as, torch.float32)))
    checks = []
    for name, args in calls.items():
        olds = {kind: net.switches[name] for kind, net in nets.items()}
        for dtype in (torch.float64, torch.float32):
            new = nets[dtype].merged_site(name, dtype)
            call = _mapped((args, {}), partial(_as, dtype))
            try:
                expected = call_user_code(olds[dtype], *_mapped(call[0], torch.clone))
                check = _check(name, source, dtype, call, expected, new, olds)
            except UserCodeError as error:
                if dtype == torch.float32:
                    raise MergeError(f"merged {name} does not run: {error}") from error
                continue
            checks.append(check.model_copy(update={"note": note}))
            break
    return checks


def _check(
    where: str,
    source: str,
    dtype: torch.dtype,
    call: Any,
    expected: Any,
    new: Callable[..., Any],
    olds: Mapping[torch.dtype, Callable[..., Any]],
) -> Check:
    """Compare a module and its merged form on one call; `olds` has the module in each precision."""
    args, kwargs = _mapped(call, torch.clone)
    y, expected = _flat(call_user_code(new, *args, **kwargs)), _flat(expected)
    (other,) = (kind for kind in olds if kind != dtype)
    # The two precisions differ by the rounding of the coarser one; this scales it to that of x.
    scale = torch.finfo(dtype).eps / max(torch.finfo(t).eps for t in (dtype, other))
    try:
        args, kwargs = _mapped(call, partial(_as, other))
        rounded = _flat(call_user_code(olds[other], *args, **kwargs))
    except UserCodeError:  # then see what a rounding of the input does
        scale, nudge = 1.0, 1 + torch.finfo(dtype).eps
        args, kwargs = _mapped(call, lambda t: t * nudge if t.is_floating_point() else t.clone())
        rounded = _flat(call_user_code(olds[dtype], *args, **kwargs))
    border, interior = _split(y, expected)
    return Check(
        where=where,
        dtype=str(dtype).removeprefix("torch."),
        source=source,
        error=relative(y, expected),
        rounding=scale * relative(rounded.to(expected), expected),
        border=border,
        interior=interior,
    )


def _random(images: Samples) -> Samples:
    """Standard normal numbers in place of all floating-point ones."""

    def drawn(x: Tensor) -> Tensor:
        return seeded_input(x.shape).to(x.device) if x.is_floating_point() else x

    random: Samples = map_tensors(drawn, images)
    return random


def _as(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor.clone()


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply `function` to each tensor in nested arguments or results."""
    return map_tensors(function, value)


def _flat(output: Any) -> Tensor:
    """A block's only tensor, or all floating-point tensors of its output as one vector."""
    tensors = tensors_of(output)
    if len(tensors) == 1:
        return tensors[0]
    floats = [t.flatten().double() for t in tensors if t.is_floating_point()]
    return torch.cat(floats or [torch.zeros(1)])


def relative(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||, infinite when the shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


def _split(actual: Tensor, expected: Tensor, width: int = 3) -> tuple[float | None, float | None]:
    """Errors of a map's (N, C, H, W) border and interior; None for other or small tensors."""
    if actual.ndim != 4 or min(actual.shape[2:]) <= 2 * width:
        return None, None
    inside = torch.zeros_like(actual, dtype=torch.bool)
    inside[:, :, width:-width, width:-width] = True
    return (
        relative(actual[~inside], expected[~inside]),
        relative(actual[inside], expected[inside]),
    )
