"""Small ONNX graphs, written by hand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="pip install 'updp[onnx]'")

from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = NDArray[np.floating]
_TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


def chain(steps: list[tuple[str, dict[str, Any], list[Array]]], dtype: str) -> ModelProto:
    """Nodes (operator, attributes, constants) one after another, from `images` to `logits`."""
    nodes, constants, last = [], [], "images"
    for i, (kind, attributes, values) in enumerate(steps):
        names = [f"{part}{i}" for part in ("weight", "bias")[: len(values)]]
        for name, value in zip(names, values, strict=True):
            constants.append(numpy_helper.from_array(value.astype(dtype), name))
        output = "logits" if i == len(steps) - 1 else f"x{i}"
        node = helper.make_node(kind, [last, *names], [output], name=f"node{i}", **attributes)
        nodes.append(node)
        last = output
    ends = [helper.make_tensor_value_info(n, _TYPES[dtype], None) for n in ("images", "logits")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def conv(
    rng: np.random.Generator, inputs: int, outputs: int, kernel: int = 3, groups: int = 1
) -> tuple[str, dict[str, Any], list[Array]]:
    """A padded convolution with a bias."""
    pads = [kernel // 2] * 4
    weight = rng.normal(size=(outputs, inputs // groups, kernel, kernel))
    return "Conv", {"group": groups, "pads": pads}, [weight, rng.normal(size=outputs)]


def evaluate(model: ModelProto, images: Array) -> Array:
    """What the ONNX project's own reference computes."""
    (logits,) = ReferenceEvaluator(model).run(None, {"images": images})  # type: ignore[misc]
    return np.asarray(logits)
