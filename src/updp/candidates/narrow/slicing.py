"""Remove channels from a module in place: from its tensors and its size attributes."""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, fx, nn

from updp.blocks.modules import UserCodeError, call_user_code, like_of, seeded_input
from updp.blocks.reading.linear import CONVOLUTIONS
from updp.candidates.parts.trials import Precision, in_precision

_log = logging.getLogger(__name__)
_SIZES = ("out_features", "num_features", "num_parameters", "num_channels", "normalized_shape")


def has_state(module: nn.Module) -> bool:
    """Whether the module has parameters or buffers."""
    return any(True for _ in (*module.parameters(), *module.buffers()))


@torch.no_grad()
def cut_outputs(module: nn.Module, channels: Tensor) -> None:
    """Keep only these output channels of an operator, or of a module that acts on each channel."""
    for name, tensor in _own(module):
        if tensor.numel() > 1:  # a PReLU may have one parameter for all channels
            _resize(module, len(tensor), channels)
            _cut(module, name, 0, channels)
    if isinstance(module, CONVOLUTIONS):
        if module.groups > 1:  # whole groups, with as many inputs as outputs
            module.groups = len(channels) * module.groups // module.out_channels
            module.in_channels = len(channels)
        module.out_channels = len(channels)


@torch.no_grad()
def cut_inputs(module: nn.Module, channels: Tensor) -> None:
    """Keep only these input channels of an operator."""
    _cut(module, "weight", 1, channels)
    if isinstance(module, CONVOLUTIONS):
        module.in_channels = len(channels)
    elif isinstance(module, nn.Linear):
        module.in_features = len(channels)


@torch.no_grad()
def cut_group_norm(module: nn.GroupNorm, channels: Tensor) -> None:
    """Keep only these channels of a GroupNorm: whole groups, or part of its only group."""
    size = module.num_channels // module.num_groups
    cut_outputs(module, channels)
    module.num_channels = len(channels)
    if module.num_groups > 1:
        module.num_groups = len(channels) // size


@torch.no_grad()
def cut_gate(module: nn.Module, channels: Tensor, count: int) -> None:
    """Keep only these of the `count` channels of a norm or a gate.

    Every axis inside it with `count` entries is taken as an axis of channels; `can_cut_gate`
    tests whether the result works.
    """
    for part in module.modules():
        if isinstance(part, (*CONVOLUTIONS, nn.Linear)):
            out_channels, in_channels = part.weight.shape[:2]
            if out_channels == count:
                cut_outputs(part, channels)
            if in_channels == count:
                cut_inputs(part, channels)
            continue
        for name, tensor in _own(part):
            for axis, size in enumerate(tensor.shape):
                if size == count:
                    _cut(part, name, axis, channels)
        _resize(part, count, channels)


def can_cut_gate(module: object, count: int, layout: str) -> bool:
    """Whether a norm or a gate on `count` channels works on half of them, by a trial."""
    if not isinstance(module, nn.Module):
        return False
    if isinstance(module, fx.GraphModule) and any(n.op == "get_attr" for n in module.graph.nodes):
        return False  # the part reads tensors that none of its modules holds
    if any(map(_is_grouped, module.modules())):
        return False  # its groups would hold other channels
    left = count // 2 or 1
    shapes: list[tuple[int, ...]] = [(2, 6, left), (2, 5, 3, left)]
    if layout == "first":
        shapes = [(2, left, 5, 3), (2, left, 6), (2, left, 2, 5, 3)]
    try:
        return in_precision(partial(_works, module, shapes, torch.arange(left), count))
    except UserCodeError as error:
        _log.info("%s does not work on fewer channels: %s", type(module).__name__, error)
        return False


def _is_grouped(part: nn.Module) -> bool:
    """Whether a module acts on groups of channels; a depthwise convolution's are single ones."""
    own = isinstance(part, CONVOLUTIONS) and 1 < part.groups < part.in_channels
    return own or isinstance(part, nn.GroupNorm)


@torch.no_grad()
def _works(
    module: nn.Module,
    shapes: Sequence[tuple[int, ...]],
    channels: Tensor,
    count: int,
    precision: Precision,
) -> bool:
    """Whether a gate on fewer channels accepts one of the shapes. Raises UserCodeError."""
    trial = precision.copy(module)
    cut_gate(trial, channels, count)
    failure: UserCodeError | None = None
    for shape in shapes:
        x = seeded_input(shape, like_of(trial))
        try:
            y = call_user_code(trial, x.clone())
        except UserCodeError as error:
            failure = error
            continue
        if isinstance(y, Tensor) and y.shape == x.shape:
            return True
    if failure is not None:
        raise failure
    return False


def _own(module: nn.Module) -> list[tuple[str, Tensor]]:
    """List the module's parameters and buffers by name, except counters, which have no axis."""
    parameters = module.named_parameters(recurse=False)
    return [*parameters, *((n, b) for n, b in module.named_buffers(recurse=False) if b.ndim)]


def _cut(module: nn.Module, name: str, axis: int, channels: Tensor) -> None:
    tensor = getattr(module, name)
    cut = tensor.index_select(axis, channels.to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        cut = nn.Parameter(cut, requires_grad=tensor.requires_grad)
    setattr(module, name, cut)


def _resize(module: nn.Module, count: int, channels: Tensor) -> None:
    """Update the attributes that hold the module's number of channels, which was `count`."""
    for name in _SIZES:
        size = getattr(module, name, None)
        if size == count:
            setattr(module, name, len(channels))
        elif size == (count,):
            setattr(module, name, (len(channels),))
