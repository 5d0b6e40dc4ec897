"""Take skips out of merged convolutions, because INT8 would round the weights beside them away.

Merging puts a block's skip into its convolution, as a 1 in the centre of each channel. That
channel's scale must then reach 1, and all other, far smaller weights share few of its 256 steps.
Taken apart, as `conv(x) + x`, the convolution has its own scale and the skip needs none.
"""

import numpy as np

from updp.deploy.int8.onnx_graph import Graph, Weighted
from updp.deploy.int8.ranges import Array

_SMALLER = 0.7  # take a skip out if the median channel then has at most this share of its range


def take_apart(graph: Graph) -> tuple[Graph, int]:
    """Rewrite skips as adds; return the new graph and their number. Modifies `graph`.

    Only dense convolutions can hold a skip, with stride 1, as many outputs as inputs, and an
    output of the input's size.
    """
    from onnx import helper

    rests = {op.node.output[0]: _rest(graph, op) for op in graph.operators()}
    found = {name: rest for name, rest in rests.items() if rest is not None}
    nodes = []
    for node in graph.model.graph.node:
        nodes.append(node)
        if (rest := found.get(node.output[0])) is not None:
            graph.set(node.input[1], rest)
            whole, branch = node.output[0], f"{node.output[0]}_branch"
            node.output[0] = branch
            nodes.append(helper.make_node("Add", [branch, node.input[0]], [whole], f"{whole}_skip"))
    # Copies, because clearing the field invalidates the messages in it.
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.model.graph.node[:]
    graph.model.graph.node.extend(copies)
    return Graph(graph.model), len(found)


def _rest(graph: Graph, op: Weighted) -> Array | None:
    """The weight (C, C, kh, kw) without its skip; None if it has no skip."""
    from onnx import helper

    weight = graph.constants[op.weight]
    if op.node.op_type != "Conv" or weight.ndim != 4 or graph.reads[op.weight] != 1:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in op.node.attribute}
    out, into, kh, kw = weight.shape
    kept = {"strides": [1, 1], "dilations": [1, 1], "pads": [kh // 2, kw // 2] * 2, "group": 1}
    default = kept | {"pads": [0, 0, 0, 0]}
    if out != into or kh % 2 == 0 or kw % 2 == 0:
        return None
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    if any(attributes.get(name, default[name]) != value for name, value in kept.items()):
        return None
    rest = weight.copy()
    rest[np.arange(out), np.arange(out), kh // 2, kw // 2] -= 1
    before, after = (np.median(np.abs(w).max((1, 2, 3))) for w in (weight, rest))
    return rest if after <= _SMALLER * before else None
