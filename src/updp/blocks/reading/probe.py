"""Classify functions of a tensor by running them on random inputs."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from updp.algebra import padding_of
from updp.blocks.copying import copy_module
from updp.blocks.modules import UserCodeError, call_user_code, evaluating, like_of, seeded_input

_EXPLAINED = 0.5  # share of variance that a line per channel must explain
_UNEVEN = 2, 5, 3, 7  # shape of random inputs: a pool to any of the usual sizes changes it


@torch.no_grad()
def channels_if_near_a_line(function: Callable[[Tensor], Tensor], x: Tensor, layout: str) -> int:
    """Number of channels of `x` if a BatchNorm can replace the function, else 0.

    It can if a line per channel explains most of the variance of its outputs for random inputs, if
    the function has no more parameters than a linear layer on these channels, and if each sample
    has its own output. That holds for norms and for squeeze-and-excitation, not for attention,
    permutations or a shift of some channels to the next frame.
    """
    axis = 1 if layout == "first" else -1
    channels = x.shape[axis]
    own = list(function.parameters()) if isinstance(function, nn.Module) else []
    if sum(p.numel() for p in own) > channels**2:
        return 0
    x = seeded_input(x.shape, x)
    try:
        with _Convolutions() as convolutions:
            y = call_user_code(function, x.clone())
    except UserCodeError:
        return 0
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return 0
    if not (x.is_floating_point() and y.is_floating_point()):
        return 0
    # How close a convolution is to a line depends on its weights, but the sites of a model must
    # depend on its structure alone, because a finished run is opened again with other weights. A
    # convolution along the channels, (N, 1, C), is allowed: it is part of a gate.
    if any(shape[1:] != (1, channels) for shape in convolutions.shapes):
        return 0
    rows = [t.movedim(axis, 0).flatten(1).double() for t in (x, y)]
    a, b = (t - t.mean(1, keepdim=True) for t in rows)
    explained = (a * b).sum(1).square() / (a.square().sum(1) * b.square().sum(1)).clamp_min(1e-30)
    return channels if explained.mean() > _EXPLAINED and _is_alone(function, x, y) else 0


def _is_alone(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> bool:
    """Whether no output in y of another sample depends on the last one's values, but for a mean."""
    if len(x) == 1:
        return True
    other = x.clone()
    other[-1] = -x[-1]
    try:
        again = call_user_code(function, other)
    except UserCodeError:  # it may check its data
        return False
    if not isinstance(again, Tensor) or (again.shape, again.dtype) != (y.shape, y.dtype):
        return False
    return bool((again - y)[:-1].abs().max() <= y.std())


class _Convolutions(TorchFunctionMode):
    """Records the input shape of each convolution with more than one tap."""

    NAMES = frozenset(f"conv{'_transpose' * t}{d}d" for t in (0, 1) for d in (1, 2, 3))

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.NAMES:
            operands = dict(zip(("input", "weight"), args, strict=False)) | kwargs
            if operands["weight"].shape[2:].numel() > 1:
                self.shapes.append(tuple(operands["input"].shape))
        return func(*args, **kwargs)


def permutation_of(function: Callable[[Tensor], Tensor], ndim: int) -> tuple[int, ...] | None:
    """Order of the input's axes in the function's output; None if it is no permutation."""
    sizes = range(2, 2 + ndim)  # all different, so that the shape tells
    try:
        y = call_user_code(function, torch.empty(*sizes, device="meta"))
    except UserCodeError:
        return None
    if not isinstance(y, Tensor) or sorted(y.shape) != list(sizes):
        return None
    return tuple(size - 2 for size in y.shape)


@torch.no_grad()
def channel_order_of(function: Callable[[Tensor], Tensor], x: Tensor, layout: str) -> Tensor | None:
    """Order (C,) to which the function permutes the channels of `x`; None if it is no shuffle."""
    axis = 1 if layout == "first" else x.ndim - 1
    count = x.shape[axis]
    numbers = torch.arange(count, dtype=torch.float64, device=x.device)
    shape = [count if i == axis else 1 for i in range(x.ndim)]
    values = seeded_input(x.shape, numbers)
    try:
        numbered = call_user_code(function, numbers.view(shape).expand(x.shape).clone())
        if not isinstance(numbered, Tensor) or numbered.shape != x.shape or numbered.is_complex():
            return None
        order = numbered.movedim(axis, 0).flatten(1)[:, 0].long()
        places = torch.arange(count, device=x.device)
        if torch.equal(order, places) or not torch.equal(order.sort().values, places):
            return None
        y = call_user_code(function, values.clone())
    except UserCodeError:
        return None
    return order if torch.equal(y, values.index_select(axis, order)) else None


@torch.no_grad()
def zero_padding_of(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[tuple[int, int], ...] | None:
    """Zeros (before, behind) that the function adds on each axis of its input; else None."""
    try:
        filled = call_user_code(function, torch.ones_like(x))
        if not isinstance(filled, Tensor) or filled.ndim != x.ndim or filled.shape == x.shape:
            return None
        sides = []
        for axis, size in enumerate(x.shape):
            places = filled.movedim(axis, 0).flatten(1).any(1).nonzero().flatten()
            before = int(places[0]) if len(places) else 0
            sides.append((before, filled.shape[axis] - size - before))
        x = seeded_input(x.shape, x)
        y = call_user_code(function, x.clone())
    except UserCodeError:
        return None
    cropped = any(side < 0 for pair in sides for side in pair)
    return None if cropped or not torch.equal(y, F.pad(x, padding_of(sides))) else tuple(sides)


@torch.no_grad()
def crop_of(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[tuple[int, int], ...] | None:
    """Pixels (before, behind) that the function crops on each axis; None if it does more."""
    numbers = torch.arange(x.numel(), dtype=torch.float64, device=x.device).view(x.shape)
    try:
        y = call_user_code(function, numbers.clone())
    except UserCodeError:
        return None
    if not isinstance(y, Tensor) or y.ndim != x.ndim or not 0 < y.numel() < x.numel():
        return None
    starts = torch.unravel_index(y.flatten()[0].long(), x.shape)
    sides = tuple(
        (int(a), size - left - int(a))
        for a, size, left in zip(starts, x.shape, y.shape, strict=True)
    )
    whole = F.pad(numbers, padding_of((-a, -b) for a, b in sides))
    return sides if whole.shape == y.shape and torch.equal(whole, y) else None


@torch.no_grad()
def moved(module: nn.Module) -> nn.Module:
    """A copy with other parameter values, if all parameters are single numbers; else the module.

    Before training, an affine function may be the identity, or a plain factor with bias 0; the
    kind of a module must not depend on that.
    """
    parameters = [*module.parameters()]
    if not parameters or any(p.numel() != 1 for p in parameters):
        return module
    try:
        module = copy_module(module)
    except UserCodeError:
        return module
    for number, parameter in enumerate(module.parameters()):
        parameter.add_(0.37 + 0.11 * number)
    return module


@torch.no_grad()
def kind_of(function: Callable[[Tensor], Tensor], real: Tensor | None = None) -> str | float:
    """Classify a function: 'identity', 'activation' (elementwise), a scalar factor, or 'other'.

    An elementwise function commutes with permuting the elements of its input, and with mixing two
    inputs element by element. With `real` it must also keep the shape of a real input, because
    "the first 64 channels" is the identity on few channels.
    """
    module = function if isinstance(function, nn.Module) else nn.Identity()
    device = like_of(module).device
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(_UNEVEN, generator=generator, dtype=torch.float64).to(device)
    other = -2 * x.flip(3) - 1
    here = (torch.rand(x.shape, generator=generator) < 0.5).to(device)
    order = torch.randperm(x.numel(), generator=generator).to(device)
    values = [x, other, x.flatten()[order].view_as(x), torch.where(here, x, other)]
    values += [] if real is None else [real]
    try:
        # A norm warns of the channels that it is given here, which the user never gave it.
        with evaluating(module), warnings.catch_warnings(action="ignore"):
            results = [call_user_code(function, value.clone()) for value in values]
    except UserCodeError:  # an elementwise function takes any shape
        return "other"
    for y, value in zip(results, values, strict=True):
        if not isinstance(y, Tensor) or (y.shape, y.dtype) != (value.shape, value.dtype):
            return "other"
    y, y_other, shuffled, mixed = results[:4]
    if not torch.allclose(shuffled.flatten(), y.flatten()[order], atol=1e-6):
        return "other"
    if not torch.allclose(mixed, torch.where(here, y, y_other), atol=1e-6):
        return "other"
    if torch.equal(y, x) and torch.equal(y_other, other):
        return "identity"
    factor = float(y.flatten()[0] / x.flatten()[0])
    scales = torch.allclose(y, factor * x) and torch.allclose(y_other, factor * other)
    return factor if scales else "activation"
