"""Read linear layers that a module combines, as where adapters stand beside one, as one step.

LoRA adds layers of low rank to a layer, and DoRA computes a factor per channel, or the whole
weight, from them. Such a module is linear in its input, whatever its weights are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from updp.algebra import padding_of, sides_of
from updp.blocks.copying import copy_module
from updp.blocks.modules import UserCodeError, call_user_code, has_hooks
from updp.blocks.reading.lazy_layer import (
    LazyLayer,
    layer_after,
    of_linear,
    of_module,
    scaled,
    shifted,
)
from updp.blocks.reading.linear import LinearStep
from updp.blocks.reading.watching import CONVOLUTIONS, per_axis
from updp.blocks.tracing.region import data_nodes, is_add, is_div, is_mul, is_size, whole_region

_SAME = {"to", "contiguous", "clone"}
_FUNCTIONS: dict[Any, int] = {F.linear: 0, F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}  # and their axes
_OPERANDS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class ComposedStep(LinearStep):
    """A module that combines linear layers, as the one layer that it amounts to.

    Its weight is computed from theirs, so gradients reach all of them.

    graph:     of the module
    convolves: whether it is a convolution
    """

    graph: fx.Graph = field(default_factory=fx.Graph)
    convolves: bool = False

    @property
    def weight(self) -> Tensor:
        """Kernel as (O, I, kh, kw)."""
        return self._as_kernel(_layer_of(self.module, self.graph).kernel())

    @property
    def bias(self) -> Tensor | None:
        """Bias (O,), or None where no layer has one."""
        return _layer_of(self.module, self.graph).bias()

    @property
    def exact_weight(self) -> Tensor:
        """Kernel (O, I, kh, kw), computed in float64 and without gradient."""
        with torch.no_grad():
            layer = _layer_of(copy_module(self.module).double(), self.graph)
            return self._as_kernel(layer.kernel())


def read_composed(name: str, module: nn.Module, graph: fx.Graph) -> ComposedStep | None:
    """Read a module with this graph as a linear step; None where it is none, or a plain layer.

    Told by its structure alone, for adapters begin as zeros. A sum with the module's input is none:
    that is a residual block. Nor is one of convolutions of which none adapts another: they merge.
    Nor is one with hooks, for the graph has nothing of what they do.
    """
    if any(map(has_hooks, module.modules())) or (layer := _combined(module, graph)) is None:
        return None
    sizes = layer.stride, layer.padding, layer.dilation
    convolves = len(layer.shape) > 2
    return ComposedStep(name, module, *sizes, derived=True, graph=graph, convolves=convolves)


def combines_layers(module: nn.Module, graph: fx.Graph) -> bool:
    """Whether the forward with this graph is one linear step, whatever the module's hooks do."""
    return _combined(module, graph) is not None


@torch.no_grad()
def plain_layer(module: nn.Module, graph: fx.Graph) -> nn.Module:
    """A linear layer or a convolution that computes what a composed module does.

    It can be trained if any parameter of the module can.
    """
    layer = _layer_of(module, graph)
    weight, bias = layer.kernel(), layer.bias()
    outputs, inputs, *kernel = layer.shape
    given: dict[str, Any] = {"bias": bias is not None, "dtype": weight.dtype}
    made: nn.Module
    if kernel:
        padding = tuple(before for before, _ in sides_of(layer.padding))
        sizes = kernel, layer.stride, padding, layer.dilation
        kind: Callable[..., nn.Module] = CONVOLUTIONS[len(kernel) - 1]
        made = kind(inputs, outputs, *sizes, device=weight.device, **given)
    else:
        made = nn.Linear(inputs, outputs, device=weight.device, **given)
    made.get_parameter("weight").copy_(weight)
    if bias is not None:
        made.get_parameter("bias").copy_(bias)
    return made.requires_grad_(any(p.requires_grad for p in module.parameters()))


def _combined(module: nn.Module, graph: fx.Graph) -> LazyLayer | None:
    try:
        layer = _LayerReader(module, graph).read()
    except UserCodeError:  # in what its weights are computed with
        return None
    if layer is None or min(layer.depths) != 1 or not (layer.is_computed or len(layer.depths) > 1):
        return None
    convolves = len(layer.shape) > 2
    return layer if layer.adapts or layer.is_computed or not convolves else None


def _layer_of(module: nn.Module, graph: fx.Graph) -> LazyLayer:
    layer = _LayerReader(module, graph).read()
    assert layer is not None  # it was read before
    return layer


class _LayerReader:
    """Reads a graph as one linear layer of its input.

    A value is a layer, or a number: the input times that.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        self._module, self._graph, self._data = module, graph, data_nodes(graph)
        self._values: dict[fx.Node, LazyLayer | float] = {}

    def read(self) -> LazyLayer | None:
        """The layer; None if there is none. Raises UserCodeError: what computes weights fails."""
        if (region := whole_region(self._graph)) is None:
            return None
        for node in self._data:
            if node.name == region.entry:
                self._values[node] = 1.0
            elif node.op != "output" and not is_size(node):  # or a type
                if (value := self._value(node)) is None:
                    return None
                self._values[node] = value
        found = next(v for node, v in self._values.items() if node.name == region.exit)
        return found if isinstance(found, LazyLayer) else None

    def _value(self, node: fx.Node) -> LazyLayer | float | None:
        """Value of a node; None if it is not linear, or not on channels alone."""
        inputs = [self._values[p] for p in node.all_input_nodes if p in self._values]
        is_input = [isinstance(a, fx.Node) and a in self._values for a in node.args]
        others = [a for a, own in zip(node.args, is_input, strict=True) if not own]
        if is_add(node) and not node.kwargs and len(inputs) == 2:
            a, b = inputs
            return a.plus(b) if isinstance(a, LazyLayer) and isinstance(b, LazyLayer) else None
        if len(inputs) != 1 or sum(is_input) != 1:
            return None
        (x,) = inputs
        if node.target in _SAME:
            return x if is_input[0] else None
        if any(p in self._data and p not in self._values for p in node.all_input_nodes):
            return None  # a size, perhaps
        if node.op == "call_module":
            child = self._module.get_submodule(str(node.target))
            if isinstance(child, nn.Identity | _DropoutNd):
                return x
            return None if others or node.kwargs else layer_after(x, of_module(child))
        if node.target in _FUNCTIONS:
            return layer_after(x, self._function(node)) if is_input[0] else None
        if len(others) != 1 or node.kwargs:
            return None
        if is_mul(node) or (is_div(node) and is_input[0]):
            return scaled(x, self._constant(others[0]), divided=is_div(node))
        return shifted(x, self._constant(others[0])) if is_add(node) else None

    def _function(self, node: fx.Node) -> LazyLayer | None:
        """The layer that a function runs."""
        operands = dict(zip(_OPERANDS, node.args, strict=False)) | node.kwargs
        given = {name: self._constant(value) for name, value in operands.items() if name != "input"}
        weight, bias = given["weight"], given.get("bias")
        if not (dims := _FUNCTIONS[node.target]):
            return of_linear(lambda: weight, lambda: bias, weight.shape, is_computed=True)
        padding = given.get("padding", 0)
        if given.get("groups", 1) != 1 or isinstance(padding, str):
            return None
        return LazyLayer(
            lambda: weight,
            lambda: bias,
            tuple(weight.shape),
            per_axis(given.get("stride", 1), dims),
            padding_of((p, p) for p in per_axis(padding, dims)),
            per_axis(given.get("dilation", 1), dims),
            is_computed=True,
        )

    @cached_property
    def _interpreter(self) -> fx.Interpreter:
        return fx.Interpreter(self._module, garbage_collect_values=False, graph=self._graph)

    def _constant(self, value: Any) -> Any:
        """Compute the value of a node that does not depend on the input; others are constants."""
        if not isinstance(value, fx.Node):
            return fx.map_arg(value, self._constant)
        for source in value.all_input_nodes:
            self._constant(source)
        if value not in self._interpreter.env:
            self._interpreter.env[value] = call_user_code(self._interpreter.run_node, value)
        return self._interpreter.env[value]
