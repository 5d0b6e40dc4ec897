"""What a function of a tensor is, by trying it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from updp.blocks.modules import UserCodeError, call_user_code, evaluating, seeded_input

_EXPLAINED = 0.5  # share of variance that a line per channel must explain, to stand for a gate


@torch.no_grad()
def channels_if_near_a_line(function: Callable[[Tensor], Tensor], x: Tensor, layout: str) -> int:
    """Channels of `x` if a BatchNorm can stand for the function, else 0.

    So it is where a line per channel explains most of what the function does to random input, and
    where it has fewer parameters than a linear layer on these channels: norms of any kind, squeeze-
    and-excitation and its kin; not attention, not a permutation. Nothing that convolves the map:
    whether that is near to a line is a matter of its weights, and a run must be found again by
    the structure alone.
    """
    axis = 1 if layout == "first" else -1
    channels = x.shape[axis]
    modules = [function] if isinstance(function, nn.Module) else []
    own = [p for m in modules for p in m.parameters()]
    convolves = any(p.ndim == 4 and p.shape[2:].numel() > 1 for p in own)
    if convolves or sum(p.numel() for p in own) > channels**2:
        return 0
    x = seeded_input(x.shape, x)
    try:
        y = call_user_code(function, x.clone())
    except UserCodeError:
        return 0
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return 0
    rows = [t.movedim(axis, 0).flatten(1).double() for t in (x, y)]
    a, b = (t - t.mean(1, keepdim=True) for t in rows)
    explained = (a * b).sum(1).square() / (a.square().sum(1) * b.square().sum(1)).clamp_min(1e-30)
    return channels if explained.mean() > _EXPLAINED else 0


@torch.no_grad()
def kind_of(function: Callable[[Tensor], Tensor]) -> str | float:
    """'identity', 'activation' (elementwise), a scalar factor, or 'other', by trying it."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(2, 4, 4, 4, generator=generator, dtype=torch.float64)
    other = -2 * x.flip(3) - 1
    here = torch.rand(x.shape, generator=generator) < 0.5
    order = torch.randperm(x.numel(), generator=generator)
    values = x, other, x.flatten()[order].view_as(x), torch.where(here, x, other)
    module = function if isinstance(function, nn.Module) else nn.Identity()
    try:
        with evaluating(module):
            results = [call_user_code(function, value.clone()) for value in values]
    except UserCodeError:  # what wants another input is simply not elementwise
        return "other"
    for y, value in zip(results, values, strict=True):
        if not isinstance(y, Tensor) or (y.shape, y.dtype) != (value.shape, value.dtype):
            return "other"
    y, y_other, shuffled, mixed = results
    if not torch.allclose(shuffled.flatten(), y.flatten()[order], atol=1e-6):
        return "other"
    if not torch.allclose(mixed, torch.where(here, y, y_other), atol=1e-6):
        return "other"
    if torch.equal(y, x) and torch.equal(y_other, other):
        return "identity"
    factor = float(y.flatten()[0] / x.flatten()[0])
    scales = torch.allclose(y, factor * x) and torch.allclose(y_other, factor * other)
    return factor if scales else "activation"
