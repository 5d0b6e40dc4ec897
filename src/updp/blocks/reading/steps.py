"""Steps of a chain: linear operators, norms, activations and scales.

A step refers to a module, parameter or function of the user's block. Steps run in the *canonical*
layout of their chain: channels first, (N, C, ...), if the chain has a convolution, else last,
(..., C).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.modules.batchnorm import _BatchNorm

from updp.blocks.copying import copy_module
from updp.blocks.reading.linear import LinearStep


def to_layout(x: Tensor, source: str, target: str) -> Tensor:
    """Move the channels of a tensor between `first` (N, C, H, W) and `last` (N, H, W, C).

    Vectors (N, C) have only one layout, and are returned unchanged.
    """
    return x if source == target or x.ndim < 3 else x.permute(order_of(target, x.ndim))


def order_of(layout: str, ndim: int) -> tuple[int, ...]:
    """The permutation of axes that converts a tensor from the other layout to this one."""
    inner = range(1, ndim - 1)
    return (0, ndim - 1, *inner) if layout == "first" else (0, *(i + 1 for i in inner), 1)


def per_channel(values: Tensor, layout: str, ndim: int) -> Tensor:
    """Reshape values per channel (C,) so that they broadcast onto tensors of `ndim` axes."""
    return values if layout == "last" else values.reshape(-1, *[1] * (ndim - 2))


@dataclass(frozen=True)
class NormStep:
    """A norm, or a gate such as squeeze-and-excitation, that a BatchNorm can replace.

    `module` may be a part of a graph, whose modules have their targets with `prefix` before.
    """

    name: str
    module: Callable[[Tensor], Tensor]
    layout: str  # of the module's own input: first | last
    channels: int
    prefix: str = ""

    def keep(self, x: Tensor, layout: str) -> Tensor:
        """Apply the step as the baseline does, to a tensor in `layout`."""
        module, y = self.module, to_layout(x, layout, self.layout)
        # timm fuses an activation into the forward of some BatchNorms.
        y = batch_norm(module, y) if isinstance(module, _BatchNorm) else module(y)
        return to_layout(y, self.layout, layout)


@dataclass(frozen=True)
class Call:
    """A function or method call of a graph and its constants, as a function of one tensor."""

    op: str
    target: Any
    args: Any  # the tensor's place holds the class `Call` itself
    kwargs: Any

    @classmethod
    def of(cls, node: fx.Node, source: fx.Node) -> Call:
        """The call of `node`, as a function of its input `source`."""

        def mark(n: fx.Node) -> Any:
            return Call if n is source else n

        return cls(node.op, node.target, fx.map_arg(node.args, mark), fx.map_arg(node.kwargs, mark))

    def _on(self, x: Any) -> tuple[Any, Any]:
        return map_aggregate((self.args, self.kwargs), lambda a: x if a is Call else a)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the call on a tensor."""
        args, kwargs = self._on(x)
        function = self.target
        if self.op == "call_method":
            function, args = getattr(args[0], function), args[1:]
        y: Tensor = function(*args, **kwargs)
        return y

    def emit(self, graph: fx.Graph, x: fx.Node) -> fx.Node:
        """Add a node that runs the call on the node `x`."""
        return graph.create_node(self.op, self.target, *self._on(x))


@dataclass(frozen=True)
class ActStep:
    """An activation: an elementwise function without parameters, or PReLU."""

    name: str
    function: Callable[[Tensor], Tensor]

    def keep(self, x: Tensor, layout: str) -> Tensor:
        """Apply the step as the baseline does."""
        return self.function(x.clone())  # many activations work in place


class Factor(nn.Module):
    """The constant factor by which a function scales its input, computed from its parameters."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self) -> Tensor:
        """The factor (1,)."""
        ones = next(self.function.parameters()).new_ones(2, 2, 2, 2)
        factor: Tensor = self.function(ones)
        return factor.flatten()[:1]


@dataclass(frozen=True)
class ScaleStep:
    """A factor per channel (layer scale; a tensor of any shape with C elements), or one constant.

    `source` is the factor, or a module without inputs that computes it from its parameters.
    """

    name: str
    source: Tensor | nn.Module

    @property
    def parameter(self) -> Tensor:
        """The factor; gradients reach the parameters from which it is computed."""
        factor: Tensor = self.source() if isinstance(self.source, nn.Module) else self.source
        return factor

    @property
    def exact(self) -> Tensor:
        """The factor without gradient; in float64 if a module computes it."""
        if not isinstance(self.source, nn.Module):
            return self.source.detach()
        with torch.no_grad():
            factor: Tensor = copy_module(self.source).double()()
        return factor

    def keep(self, x: Tensor, layout: str) -> Tensor:
        """Apply the step as the baseline does, to a tensor in `layout`."""
        gamma = self.parameter.flatten()
        if len(gamma) == 1:
            return x * gamma[0]
        return x * per_channel(gamma, layout, x.ndim)


@dataclass(frozen=True)
class ShuffleStep:
    """A permutation of channels, as in ShuffleNet: output channel c is input `order[c]`, (C,)."""

    name: str
    order: Tensor

    def keep(self, x: Tensor, layout: str) -> Tensor:
        """Apply the step as the baseline does, to a tensor in `layout`."""
        return x.index_select(1 if layout == "first" else -1, self.order.to(x.device))


Step = LinearStep | NormStep | ActStep | ScaleStep | ShuffleStep


@dataclass(frozen=True)
class Chain:
    """A path through a block as a sequence of steps; without steps it is the identity.

    layout:  canonical layout, first | last; `layout_in` and `layout_out` are those of the tensors
        that enter and leave the path
    dims:    number of axes of its kernels; 2 in layout `last`, where all are linear layers
    """

    steps: tuple[Step, ...]
    layout: str
    layout_in: str
    layout_out: str
    dims: int = 2

    @property
    def linears(self) -> tuple[LinearStep, ...]:
        """The convolutions and linear layers, in order."""
        return tuple(s for s in self.steps if isinstance(s, LinearStep))

    def keep(self, x: Tensor) -> Tensor:
        """Run all steps as the baseline does, from layout `layout_in` to layout `layout_out`."""
        x = to_layout(x, self.layout_in, self.layout)
        for step in self.steps:
            x = step.keep(x, self.layout)
        return to_layout(x, self.layout, self.layout_out)


def is_affine(step: Step) -> bool:
    """Whether the step is an affine map per channel in evaluation: a scale or a BatchNorm."""
    return isinstance(step, ScaleStep) or (
        isinstance(step, NormStep) and isinstance(step.module, _BatchNorm)
    )


def batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Normalise in the norm's own mode, without an activation fused into its forward."""
    momentum = norm.momentum
    if momentum is None:  # use the mean of all batches so far
        momentum = 0.0
        if norm.training and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            momentum = 1 / norm.num_batches_tracked.item()
    return F.batch_norm(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.training,
        momentum,
        norm.eps,
    )
