"""An ONNX graph with access to its linear operators, constants, and readers of tensors."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from updp.deploy.int8.ranges import Array

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Weighted:
    """A linear operator with a constant weight."""

    node: Any  # onnx.NodeProto
    weight: str  # name of the constant
    bias: str  # name of the constant; empty if there is none
    axis: int  # axis of the output channels in the weight
    groups: int

    @property
    def kind(self) -> str:
        """The ONNX operator, with the groups of a grouped convolution."""
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return f"{self.node.op_type}{groups}"


class Graph:
    """An `onnx.ModelProto` whose constants can be read and replaced."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.model = model
        self._index = {tensor.name: i for i, tensor in enumerate(model.graph.initializer)}
        self.constants: Mapping[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        self._outputs = {output.name for output in model.graph.output}
        self.reads: Counter[str] = Counter()
        self._readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.reads[name] += 1
                self._readers.setdefault(name, []).append(node)

    def set(self, name: str, value: Array) -> None:
        """Replace a constant; keeps its type."""
        from onnx import numpy_helper

        value = value.astype(self.constants[name].dtype)
        tensor = numpy_helper.from_array(value, name)
        self.model.graph.initializer[self._index[name]].CopyFrom(tensor)
        self.constants = {**self.constants, name: value}

    def only_reader(self, name: str) -> Any | None:
        """The only node that reads the tensor, once only; None for outputs of the graph."""
        alone = self.reads[name] == 1 and name not in self._outputs
        return self._readers[name][0] if alone else None

    def operators(self) -> Iterator[Weighted]:
        """Linear operators with constant weights, in the graph's order."""
        for node in self.model.graph.node:
            inputs = [*node.input, "", ""]
            weight = inputs[1]
            if node.op_type not in LINEAR or weight not in self.constants:
                continue
            attributes = {a.name: a for a in node.attribute}
            groups, axis = 1, 0
            if node.op_type in ("Conv", "ConvTranspose"):
                groups = attributes["group"].i if "group" in attributes else 1
                axis = 0 if node.op_type == "Conv" else 1
            elif node.op_type == "MatMul":
                axis = self.constants[weight].ndim - 1
            elif not ("transB" in attributes and attributes["transB"].i):
                axis = 1
            yield Weighted(node, weight, inputs[2], axis, groups)


def module_names(graph: Graph, weights: Mapping[str, Array]) -> dict[str, str]:
    """Names of modules by weight constant; names of nodes if the module is unknown.

    `weights` are the modules' weights by name. The exporter renames some constants, and transposes
    some: these are found by their values.
    """
    known: dict[bytes, str] = {}
    for name, value in weights.items():
        for form in (value, np.ascontiguousarray(value.T)):
            known.setdefault(form.tobytes(), name)
    names = {}
    for operator in graph.operators():
        plain = operator.weight.removesuffix(".weight")
        values = graph.constants[operator.weight].tobytes()
        found = plain if plain in weights else known.get(values)
        names[operator.weight] = found or operator.node.name
    return names
