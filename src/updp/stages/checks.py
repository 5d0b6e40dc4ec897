"""Compare a block, or the whole model, with its merged form on one call."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor

from updp.blocks.modules import UserCodeError, call_user_code
from updp.blocks.nested import map_tensors
from updp.blocks.values import tensors_of
from updp.io.records import Record

# A merged operator sums in another order, with other but hardly larger rounding errors: an error
# of up to this many times the subnet's own rounding error is accepted.
ROUNDINGS = 4


class Check(BaseModel, frozen=True):
    """Relative L2 error of one block, or of the whole model, on one input."""

    where: str  # path of the block, or the site where there is a note; empty for the whole model
    dtype: str  # precision of the comparison, `float64` or `float32`
    source: str  # input of the comparison, `random` or `images`
    error: float  # error of the merged form's output, relative to the subnet's
    rounding: float  # estimate of the relative error that the subnet itself makes by rounding
    # Relative error of a map's outer 3 pixels; null for small maps and other tensors.
    border: float | None = None
    interior: float | None = None  # relative error of its other pixels; null likewise
    note: str = ""  # why sites were compared alone, each on the inputs that it has in float32


class Checks(Record):
    """The comparisons of merged model and subnet."""

    FILE: ClassVar[str] = "merge/checks.json"
    rows: tuple[Check, ...]  # one for each block and the whole model, by precision and input


def limit(check: Check, tolerances: Mapping[str, float]) -> float:
    """Largest accepted relative error of a check."""
    return max(tolerances[check.dtype], ROUNDINGS * check.rounding)


def first_wrong(checks: Sequence[Check], tolerances: Mapping[str, float]) -> Check | None:
    """The first check above its tolerance (NaN counts as above), or None."""
    return next((c for c in checks if not c.error <= limit(c, tolerances)), None)


def compare_call(
    where: str,
    source: str,
    dtype: torch.dtype,
    call: Any,
    expected: Any,
    new: Callable[..., Any],
    olds: Mapping[torch.dtype, Callable[..., Any]],
) -> Check:
    """Compare a module and its merged form on one call; `olds` has the module in each precision."""
    args, kwargs = map_tensors(torch.clone, call)
    y, expected = _flat(call_user_code(new, *args, **kwargs)), _flat(expected)
    (other,) = (kind for kind in olds if kind != dtype)
    # The two precisions differ by the coarser one's rounding; `scale` converts it to `dtype`'s.
    scale = torch.finfo(dtype).eps / max(torch.finfo(t).eps for t in (dtype, other))
    try:
        args, kwargs = map_tensors(partial(as_type, other), call)
        rounded = _flat(call_user_code(olds[other], *args, **kwargs))
    except UserCodeError:  # then measure the effect of rounding the input
        scale, nudge = 1.0, 1 + torch.finfo(dtype).eps
        args, kwargs = map_tensors(
            lambda t: t * nudge if t.is_floating_point() else t.clone(), call
        )
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


def as_type(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """A copy of a tensor, converted to `dtype` if it is floating-point."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor.clone()


def _flat(output: Any) -> Tensor:
    """The only tensor of an output, or all its floating-point tensors as one vector."""
    tensors = tensors_of(output)
    if len(tensors) == 1:
        return tensors[0]
    floats = [t.flatten().double() for t in tensors if t.is_floating_point()]
    return torch.cat(floats or [torch.zeros(1)])


def relative(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||; infinite if the shapes differ."""
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
