"""One model in float32 and in INT8, and how far apart their logits are."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from updp.deploy.export.onnx import Onnx
from updp.deploy.export.parity import logits
from updp.deploy.int8.equalize import equalize
from updp.deploy.int8.onnx_graph import Graph, module_names
from updp.deploy.int8.operators import linear_weights
from updp.deploy.int8.skips import take_apart
from updp.deploy.int8.static import fold, quantize_model
from updp.run.plain import PREFIX, PlainModel

_BATCH = 64  # images per batch, for logits


@dataclass(frozen=True)
class Int8Model:
    """A model in INT8."""

    file: Path
    graph: Graph  # the float graph that was quantised
    names: dict[str, str]  # paths of the user's modules by name of weight constant
    pairs: int  # number of equalised pairs of operators
    skips: int  # number of skips taken out of merged operators
    lost: float  # noise over signal (in squares) of the logits of calibration images


class FloatModel:
    """The float32 ONNX file of `net` in `folder`, where its INT8 models are written, too.

    `calibration` are images (N, C, H, W). Raises any error of the exporter.
    """

    def __init__(self, net: nn.Module, folder: Path, calibration: Tensor) -> None:
        folder.mkdir()
        self.file, self.calibration, self._net = folder / "float.onnx", calibration, net
        Onnx().write(net, calibration[:1], self.file)
        self.bytes = sum(path.stat().st_size for path in Onnx().files(self.file))
        self._folded = fold(self.file)
        self._logits = self._predict(self.file)

    def quantize(self, method: str, *, per_channel: bool, equalised: bool) -> Int8Model:
        """The model in INT8, see `quantize_model`. Raises any error of the quantiser."""
        graph = Graph(copy.deepcopy(self._folded))
        prefix = PREFIX if isinstance(self._net, PlainModel) else ""
        names = {
            weight: name.removeprefix(prefix)
            for weight, name in module_names(graph, linear_weights(self._net)).items()
        }
        graph, skips = take_apart(graph)
        pairs = equalize(graph) if equalised else 0
        file = self.file.with_name("equalised.onnx" if equalised else "plain.onnx")
        content = quantize_model(graph.model, self.calibration, method, per_channel=per_channel)
        file.write_bytes(content)
        noise = self._predict(file) - self._logits
        signal = self._logits.square().sum().clamp(min=1e-12)
        lost = (noise.square().sum() / signal).item()
        return Int8Model(file, graph, names, pairs, skips, lost)

    def _predict(self, file: Path) -> Tensor:
        return logits(Onnx().load(file), torch.split(self.calibration, _BATCH))
