"""The steps of a branch: what is left of a block once its structure has been read.

A step names a module (or parameter, or function) of the user's own block and says what it does to
a feature map. Steps run in a site's *canonical* layout: channels first, `(N, C, H, W)`, when the
branch has a convolution, else channels last, `(..., C)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from updp.blocks.reading.linear import LinearStep


def to_layout(x: Tensor, source: str, target: str) -> Tensor:
    """Move the channels of a 4-d tensor between `first` (N, C, H, W) and `last` (N, H, W, C)."""
    if source == target:
        return x
    return x.permute(0, 2, 3, 1) if target == "last" else x.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class NormStep:
    """A normalisation, or a gate such as squeeze-and-excitation: a BatchNorm can stand for it."""

    name: str
    module: Callable[[Tensor], Tensor]
    layout: str  # the one its own forward wants
    channels: int

    def keep(self, x: Tensor, layout: str) -> Tensor:
        """The step as the baseline does it, on a canonical tensor."""
        y = to_layout(x, layout, self.layout) if x.ndim == 4 else x
        if isinstance(self.module, nn.modules.batchnorm._BatchNorm):
            y = batch_norm(self.module, y)  # timm fuses an activation into some forwards
        else:
            y = self.module(y)
        return to_layout(y, self.layout, layout) if x.ndim == 4 else y


@dataclass(frozen=True)
class Call:
    """A function or method of a block's graph and its constants, as a function of one tensor."""

    op: str
    target: Any
    args: Any
    kwargs: Any

    @classmethod
    def of(cls, node: fx.Node, source: fx.Node) -> Call:
        """The call that `node` makes on `source`; the class `Call` marks the tensor's place."""

        def mark(n: fx.Node) -> Any:
            return Call if n is source else n

        return cls(node.op, node.target, fx.map_arg(node.args, mark), fx.map_arg(node.kwargs, mark))

    def _on(self, x: Any) -> tuple[Any, Any]:
        return map_aggregate((self.args, self.kwargs), lambda a: x if a is Call else a)

    def __call__(self, x: Tensor) -> Tensor:
        """Call it."""
        args, kwargs = self._on(x)
        if self.op == "call_method":
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    def emit(self, graph: fx.Graph, x: fx.Node) -> fx.Node:
        """The same call on `x`, in a graph."""
        return graph.create_node(self.op, self.target, *self._on(x))


@dataclass(frozen=True)
class ActStep:
    """An elementwise function without parameters (or PReLU)."""

    name: str
    function: Callable[[Tensor], Tensor]

    def keep(self, x: Tensor, layout: str) -> Tensor:
        """The step as the baseline does it; a copy, since many work in place."""
        return self.function(x.clone())


@dataclass(frozen=True)
class ScaleStep:
    """A factor per channel or for all: learnt (layer scale), or a constant."""

    name: str
    parameter: Tensor

    def keep(self, x: Tensor, layout: str) -> Tensor:
        """The step as the baseline does it, on a canonical tensor."""
        gamma = self.parameter.flatten()
        if len(gamma) == 1:
            return x * gamma[0]
        return x * (gamma if layout == "last" else gamma[:, None, None])


Step = LinearStep | NormStep | ActStep | ScaleStep


@dataclass(frozen=True)
class Chain:
    """A path through a block, read as steps; empty for the identity."""

    steps: tuple[Step, ...]
    layout: str  # canonical layout: first | last
    layout_in: str  # layout of the tensor that enters the path
    layout_out: str

    @property
    def linears(self) -> tuple[LinearStep, ...]:
        """Its convolutions and linear layers, in order."""
        return tuple(s for s in self.steps if isinstance(s, LinearStep))

    def keep(self, x: Tensor) -> Tensor:
        """Run the path as the baseline does, from the block's tensor to the block's tensor."""
        if x.ndim == 4:
            x = to_layout(x, self.layout_in, self.layout)
        for step in self.steps:
            x = step.keep(x, self.layout)
        return to_layout(x, self.layout, self.layout_out) if x.ndim == 4 else x


def batch_norm(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """A BatchNorm's normalisation in its own mode, without an activation fused into its forward."""
    return F.batch_norm(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.training,
        norm.momentum or 0.0,
        norm.eps,
    )
