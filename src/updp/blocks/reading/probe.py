"""What a function of a tensor is, by trying it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

_EXPLAINED = 0.5  # share of variance that a line per channel must explain, to stand for a gate


def quiet(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A GraphModule that fails prints its code; its forward does not."""
    return function.forward if isinstance(function, fx.GraphModule) else function


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
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    try:
        y = quiet(function)(x.clone())
    except Exception:  # user code may raise any
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
    modules = [function] if isinstance(function, nn.Module) else []
    training = [m.training for m in modules]
    try:
        for module in modules:
            module.eval()
        function = quiet(function)
        y, y_other = function(x.clone()), function(other.clone())
        if not isinstance(y, Tensor) or y.shape != x.shape:
            return "other"
        shuffled = function(x.flatten()[order].view_as(x).clone()).flatten()
        mixed = function(torch.where(here, x, other))
        if not torch.allclose(shuffled, y.flatten()[order], atol=1e-6) or not torch.allclose(
            mixed, torch.where(here, y, y_other), atol=1e-6
        ):
            return "other"
        if torch.equal(y, x) and torch.equal(y_other, other):
            return "identity"
        factor = float(y.flatten()[0] / x.flatten()[0])
        scales = torch.allclose(y, factor * x) and torch.allclose(y_other, factor * other)
        return factor if scales else "activation"
    except Exception:  # a module that wants another input is simply not elementwise
        return "other"
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.train(mode)
