"""Verification that a merged model computes what was trained."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from updp.blocks.modules import hooks, seeded_input
from updp.blocks.nested import Samples, map_tensors, tensors_in
from updp.errors import MergeError
from updp.io.records import Record
from updp.recipe import MergeSettings
from updp.supernet import Supernet
from updp.tasks import CLASSIFICATION, Task

# A merged operator sums in another order, which rounds differently but hardly worse: an error of
# up to this many times the subnet's own rounding error is accepted.
ROUNDINGS = 4
PARTS = 4  # two precisions, each on random inputs and real images


class Check(BaseModel, frozen=True):
    """Relative L2 error of one block, or of the logits (`where` is empty), on one input.

    `rounding` estimates the error that the subnet itself makes in this precision.
    """

    where: str
    dtype: str
    source: str
    error: float
    rounding: float
    border: float | None = None
    interior: float | None = None


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
        torch.float64: copy.deepcopy(net).double().eval(),
        torch.float32: copy.deepcopy(net).float().eval(),
    }
    inputs = {"random": _random(images), "images": images}
    checks: list[Check] = []
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        (other,) = (d for d in nets if d != dtype)
        merged = net.merged(dtype)
        tolerance: float = getattr(settings, f"tolerance_{name}")
        for source in sources:
            x = _mapped(inputs[source], partial(_converted, dtype=dtype))
            for check in _compare(nets[dtype], merged, nets[other], x, dtype, other, source, task):
                limit = max(tolerance, ROUNDINGS * check.rounding)
                if not check.error <= limit:  # which is true of NaN as well
                    raise MergeError(
                        f"merged {check.where or 'model'} differs from what was trained by "
                        f"{check.error:.1e} ({check.dtype}, {source}; at most {limit:.0e}): "
                        "nothing was written"
                    )
                checks.append(check)
            tick()
    return checks


def _compare(
    subnet: Supernet,
    merged: nn.Module,
    reference: Supernet,
    x: Samples,
    dtype: torch.dtype,
    other: torch.dtype,
    source: str,
    task: Task,
) -> list[Check]:
    """Compare on one input; `reference` is the subnet in the `other` precision."""
    name_of_type = str(dtype).removeprefix("torch.")
    # The two precisions differ by the rounding of the coarser one; this scales it to that of x.
    scale = torch.finfo(dtype).eps / max(torch.finfo(t).eps for t in (dtype, other))
    blocks = subnet.pruned_blocks()
    calls: dict[str, tuple[Any, Any]] = {}

    def record(name: str) -> Iterator[RemovableHandle]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[name] = _mapped((args, kwargs), torch.clone), None  # the block may work in place

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[name] = calls[name][0], _mapped(output, torch.clone)

        module = subnet.model.get_submodule(name)
        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)

    with hooks(handle for name in blocks for handle in record(name)):
        returned = task.returned(subnet, x)

    def check(
        where: str, call: Any, expected: Any, new: Callable[..., Any], old: Callable[..., Any]
    ) -> Check:
        args, kwargs = _mapped(call, torch.clone)
        y, expected = _flat(new(*args, **kwargs)), _flat(expected)
        args, kwargs = _mapped(call, partial(_converted, dtype=other))
        rounding = scale * relative(_flat(old(*args, **kwargs)).to(expected), expected)
        error = relative(y, expected)
        border, interior = _split(y, expected)
        return Check(
            where=where,
            dtype=name_of_type,
            source=source,
            error=error,
            rounding=rounding,
            border=border,
            interior=interior,
        )

    checks = []
    for name, (call, expected) in calls.items():
        modules = merged.get_submodule(name), reference.model.get_submodule(name)
        checks.append(check(name, call, expected, *modules))
    models = partial(task.returned, merged), partial(task.returned, reference)
    return [*checks, check("", ((x,), {}), returned, *models)]


def _converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in another precision, of whole numbers in their own."""
    return x.to(dtype if x.is_floating_point() else x.dtype, copy=True)


def _random(images: Samples) -> Samples:
    """Standard normal numbers in place of all floating-point ones."""

    def drawn(x: Tensor) -> Tensor:
        return seeded_input(x.shape).to(x.device) if x.is_floating_point() else x

    random: Samples = map_tensors(drawn, images)
    return random


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply `function` to each tensor in nested arguments or results."""
    return map_tensors(function, value)


def _flat(output: Any) -> Tensor:
    """A block's only tensor, or all floating-point tensors of its output as one vector."""
    tensors = tensors_in(output)
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat([t.flatten() for t in tensors if t.is_floating_point()])


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
