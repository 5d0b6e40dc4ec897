"""Find the axis of a feature map that holds the channels, for a branch that is no chain."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from updp.blocks.modules import UserCodeError, call_user_code, hooks

FIRST, LAST = "first", "last"
OTHER = {FIRST: LAST, LAST: FIRST}


def usual_layout(ndim: int) -> str:
    """The usual layout of a tensor of `ndim` axes, if nothing else is known."""
    return FIRST if ndim in (4, 5) else LAST


@torch.no_grad()
def layout_of(part: nn.Module, *inputs: Any) -> str:
    """Layout of the first of `inputs`, from the inputs of the operators and norms in `part`.

    The first operator or norm whose input has the tensor's own shape decides, unless it fits both
    layouts; else the first one whose number of channels equals the size of exactly one of the two
    axes. With another shape the kind of a module says nothing: attention may flatten a map to
    tokens, and a gate may pool it.
    """
    x = inputs[0]
    usual = usual_layout(x.ndim)
    if x.ndim not in (3, 4, 5):
        return usual
    seen: list[tuple[tuple[int, ...], str]] = []

    def watch(module: nn.Module) -> RemovableHandle:
        def hook(m: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(t := args[0], Tensor) and t.ndim > 1:
                seen.append((tuple(t.shape), _layout_in(m, t)))

        return module.register_forward_pre_hook(hook)

    watched = (watch(m) for m in part.modules() if _has_channels(m))
    with suppress(UserCodeError), hooks(watched):  # inputs seen before a failure still count
        call_user_code(part, x.clone(), *inputs[1:])
    shape = tuple(x.shape)
    for own, layout in seen:
        if own == shape and layout:
            return layout
    axes = {FIRST: shape[1], LAST: shape[-1]}
    for own, layout in seen:
        channels = own[1] if layout == FIRST else own[-1]
        fitting = [name for name, count in axes.items() if count == channels]
        if len(fitting) == 1:
            return fitting[0]
        if fitting and layout and len(own) == x.ndim:
            return layout
    return usual


def _has_channels(module: nn.Module) -> bool:
    by_channel = (
        *(nn.Linear, nn.modules.conv._ConvNd),
        *(nn.modules.batchnorm._BatchNorm, nn.GroupNorm),
    )
    return isinstance(module, by_channel) or len(normalized(module)) == 1


def normalized(module: nn.Module) -> tuple[int, ...]:
    """Sizes over which a LayerNorm, RMSNorm or similar norm normalises; empty for others."""
    shape: Any = getattr(module, "normalized_shape", ())
    return tuple(shape) if isinstance(shape, (tuple, list, torch.Size)) else ()


def _layout_in(module: nn.Module, x: Tensor) -> str:
    """Layout of the input of a module with channels; empty if both axes fit."""
    if isinstance(module, nn.Linear):
        return LAST
    if not normalized(module):
        return FIRST
    (channels,) = normalized(module)
    if x.shape[1] != x.shape[-1]:
        return LAST if x.shape[-1] == channels else FIRST
    known = type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward)
    return LAST if known else ""
