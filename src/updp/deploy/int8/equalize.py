"""Cross-layer equalisation (Nagel et al., 2019, arXiv 1906.04721) of an ONNX graph.

Where only a positively homogeneous function f stands between two linear operators, channel i of
the first can be divided by any s_i > 0 and the second's multiplied by it: f(x / s) s = f(x). With
s_i = sqrt(a_i / b_i), a_i and b_i the channel's largest weights before and behind, both become
sqrt(a_i b_i), and no channel is left with only a few of the 256 levels.
"""

import math
from collections.abc import Iterator

import numpy as np

from updp.deploy.int8.onnx_graph import Graph, Weighted
from updp.deploy.int8.ranges import Array, channel_ranges

# Operators that do not mix channels and through which a positive factor passes.
_HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity")
_ROUNDS, _DONE = 100, 1e-3  # maximum number; stop below this log of the largest factor of a round


def equalize(graph: Graph) -> int:
    """Scale the channels of all such pairs of operators in place; return the number of pairs.

    BatchNorms must be folded. The graph's output stays the same, up to rounding.
    """
    pairs = list(_pairs(graph))
    # A weight may be in two pairs: balancing one slightly unbalances the other.
    for _ in range(_ROUNDS):
        if not max((_balance(graph, *pair) for pair in pairs), default=0.0) > _DONE:
            break
    return len(pairs)


def _pairs(graph: Graph) -> Iterator[tuple[Weighted, Weighted]]:
    """Pairs of consecutive operators with only homogeneous functions between them."""
    usable = [operator for operator in graph.operators() if _usable(graph, operator)]
    by_node = {operator.node.output[0]: operator for operator in usable}
    for first in usable:
        tensor = first.node.output[0]
        reader = graph.only_reader(tensor)
        while reader is not None and reader.op_type in _HOMOGENEOUS:
            tensor = reader.output[0]
            reader = graph.only_reader(tensor)
        second = by_node.get(reader.output[0]) if reader is not None else None
        if second is not None and second.node.input[0] == tensor:
            yield first, second


def _usable(graph: Graph, operator: Weighted) -> bool:
    node, weight = operator.node, graph.constants[operator.weight]
    if any(graph.reads[name] > 1 for name in (operator.weight, operator.bias) if name):
        return False  # shared: scaling it here would change another operator
    if operator.bias and operator.bias not in graph.constants:
        return False
    outputs = weight.shape[operator.axis]
    if operator.bias and graph.constants[operator.bias].size != outputs:
        return False
    if node.op_type == "Gemm":
        # Its factors alpha and beta do not matter: both terms are scaled alike.
        return not any(a.name == "transA" and a.i for a in node.attribute)
    return bool(node.op_type == "Conv")


def _balance(graph: Graph, first: Weighted, second: Weighted) -> float:
    """Give each channel the same range on both sides; return the log of the largest factor."""
    weight = graph.constants[first.weight].astype(np.float64)
    behind = graph.constants[second.weight].astype(np.float64)
    before = channel_ranges(weight, first.axis)
    inputs = _by_input(behind, second)
    after = np.abs(inputs).max((1, 3)).ravel()
    if before.shape != after.shape:
        return 0.0
    used = (before > 0) & (after > 0)
    scale = np.ones_like(before)
    scale[used] = np.sqrt(before[used] / after[used])
    shape = [1] * weight.ndim
    shape[first.axis] = -1
    graph.set(first.weight, weight / scale.reshape(shape))
    if first.bias:
        bias = graph.constants[first.bias].astype(np.float64)
        graph.set(first.bias, bias / scale.reshape(bias.shape))
    inputs *= scale.reshape(second.groups, 1, -1, 1)  # a view of `behind`
    graph.set(second.weight, behind)
    return float(np.abs(np.log(scale)).max(initial=0))


def _by_input(weight: Array, operator: Weighted) -> Array:
    """A view of the weight by input: (groups, outputs and inputs of a group, kernel size)."""
    if operator.node.op_type == "Gemm":
        return (weight.T if operator.axis else weight)[None, :, :, None]
    return weight.reshape(operator.groups, -1, weight.shape[1], math.prod(weight.shape[2:]))
