"""Channels taken out of a module, in place: its weights, and what it says of its own sizes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

_SIZES = ("out_features", "num_features", "num_parameters", "num_channels", "normalized_shape")


def has_state(module: nn.Module) -> bool:
    """Whether it has parameters or buffers."""
    return any(True for _ in (*module.parameters(), *module.buffers()))


@torch.no_grad()
def cut_outputs(module: nn.Module, channels: Tensor) -> None:
    """Keep these of the channels that it gives; of what acts on each channel, all of it."""
    for name, tensor in _own(module):
        if tensor.numel() > 1:  # a PReLU may have one for all
            _set(module, name, tensor, 0, channels)
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:  # depthwise
            module.in_channels = module.groups = len(channels)
        module.out_channels = len(channels)
    _say(module, channels)


@torch.no_grad()
def cut_inputs(module: nn.Conv2d | nn.Linear, channels: Tensor) -> None:
    """Keep these of the channels that it reads."""
    _set(module, "weight", module.weight, 1, channels)
    if isinstance(module, nn.Conv2d):
        module.in_channels = len(channels)
    else:
        module.in_features = len(channels)


@torch.no_grad()
def cut_gate(module: nn.Module, channels: Tensor, count: int) -> None:
    """Keep these of the `count` channels of a norm or a gate, inside of it, too."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            reads = part.in_channels if isinstance(part, nn.Conv2d) else part.in_features
            if part.weight.shape[0] == count:
                cut_outputs(part, channels)
            if reads == count and part.weight.shape[1] == count:
                cut_inputs(part, channels)
            continue
        for name, tensor in _own(part):
            for axis, size in enumerate(tensor.shape):
                if size == count:
                    _set(part, name, tensor, axis, channels)
        _say(part, channels)


def can_cut_gate(module: object, count: int, layout: str) -> bool:
    """Whether a norm or a gate on `count` channels works on half of them, by trying it."""
    if not isinstance(module, nn.Module) or isinstance(module, fx.GraphModule):
        return False  # a part of the block's own graph, which is not a module to be copied
    if any(isinstance(part, nn.GroupNorm) for part in module.modules()):
        return False  # its groups would be others
    left = count // 2 or 1
    shapes = [(2, left, 5, 3)] if layout == "first" else [(2, 6, left), (2, 5, 3, left)]
    return any(_works(module, count, shape, left) for shape in shapes)


@torch.no_grad()
def _works(module: nn.Module, count: int, shape: tuple[int, ...], left: int) -> bool:
    trial = copy.deepcopy(module).eval()
    x = torch.randn(shape).to(next((p for p in module.parameters()), torch.empty(0)))
    try:
        cut_gate(trial, torch.arange(left), count)
        return bool(trial(x).shape == x.shape)
    except Exception:  # user code may raise any
        return False


def _own(module: nn.Module) -> list[tuple[str, Tensor]]:
    parameters = module.named_parameters(recurse=False)
    return [*parameters, *((n, b) for n, b in module.named_buffers(recurse=False) if b.ndim)]


def _set(module: nn.Module, name: str, tensor: Tensor, axis: int, channels: Tensor) -> None:
    cut = tensor.index_select(axis, channels.to(tensor.device))
    setattr(module, name, nn.Parameter(cut) if isinstance(tensor, nn.Parameter) else cut)


def _say(module: nn.Module, channels: Tensor) -> None:
    for name in _SIZES:
        said = getattr(module, name, 1)
        if isinstance(said, int) and said > 1:
            setattr(module, name, len(channels))
        elif isinstance(said, tuple):
            setattr(module, name, (len(channels),))
