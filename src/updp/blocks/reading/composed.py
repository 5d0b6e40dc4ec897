"""Read linear layers in parallel, such as one with LoRA adapters, as one linear step."""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from updp.blocks.copying import copy_module
from updp.blocks.modules import evaluating
from updp.blocks.reading.linear import LinearStep
from updp.blocks.tracing.region import data_nodes, is_add, is_size, whole_region

_MULS = {operator.mul, torch.mul, "mul"}
_SAME = {"to", "contiguous", "clone"}


@dataclass(frozen=True)
class ComposedStep(LinearStep):
    """A module that sums linear layers, as the one layer that it amounts to.

    Its weight is what the module makes of the unit vectors, so gradients reach all of its layers.

    inputs:  number of input channels
    """

    inputs: int = 0

    @property
    def weight(self) -> Tensor:
        """Kernel as (O, I, 1, 1)."""
        return self._as_kernel(_weight(self.module, self.inputs))

    @property
    def bias(self) -> Tensor | None:
        """Bias (O,), or None where no layer has one."""
        layers = [m for m in self.module.modules() if isinstance(m, nn.Linear)]
        if all(layer.bias is None for layer in layers):
            return None
        return _output(self.module, _inputs(self.module, self.inputs).new_zeros(self.inputs))

    @property
    def exact_weight(self) -> Tensor:
        """Kernel (O, I, 1, 1), computed in float64 and without gradient."""
        with torch.no_grad():
            return self._as_kernel(_weight(copy_module(self.module).double(), self.inputs))


def is_composed(module: nn.Module, graph: fx.Graph) -> bool:
    """Whether a module is a sum of linear layers, one of which is factored, as in LoRA.

    Told by its graph alone, for adapters begin as zeros. A sum with the module's input is none:
    that is a residual block.
    """
    region = whole_region(graph)
    if region is None:
        return False
    data = data_nodes(graph)
    depths: dict[fx.Node, set[int]] = {}  # numbers of layers on the paths to each node
    for node in data:
        sources = [p for p in node.all_input_nodes if p in depths]
        if node.op == "placeholder":
            depths[node] = {0}
        elif node.op == "output" or is_size(node):  # or a type
            continue
        elif is_add(node) and len(sources) == 2 and not node.kwargs:
            depths[node] = depths[sources[0]] | depths[sources[1]]
        elif len(sources) == 1 and (layers := _count_layers(module, node)) is not None:
            depths[node] = {depth + layers for depth in depths[sources[0]]}
        else:
            return False
    found = next((depths[node] for node in depths if node.name == region.exit), {0})
    return len(found) > 1 and min(found) == 1


def _count_layers(module: nn.Module, node: fx.Node) -> int | None:
    """Number of linear layers that a node of one input runs, 0 or 1; None if it is not linear."""
    if node.op == "call_module":
        child = module.get_submodule(str(node.target))
        if type(child).forward is nn.Linear.forward and "forward" not in vars(child):
            return 1
        return 0 if isinstance(child, nn.Identity | nn.Dropout) else None
    by_number = any(isinstance(arg, int | float) for arg in node.args)
    if (node.target in _MULS and by_number) or (node.op == "call_method" and node.target in _SAME):
        return 0
    return None


def _weight(module: nn.Module, inputs: int) -> Tensor:
    units = _inputs(module, inputs)
    return (_output(module, units) - _output(module, torch.zeros_like(units[0]))).mT


def _inputs(module: nn.Module, count: int) -> Tensor:
    """The unit vectors, of the type that the module computes with."""
    first = next(module.parameters())
    return torch.eye(count, dtype=first.dtype, device=first.device)


def _output(module: nn.Module, x: Tensor) -> Tensor:
    with evaluating(module):  # without dropout
        y: Tensor = module(x)
    return y
