"""Static quantisation by ONNX Runtime: signed weights, unsigned activations, in QDQ form.

The file has ordinary ONNX operators between pairs of QuantizeLinear and DequantizeLinear, which any
runtime can read: ONNX Runtime, OpenVINO and TensorRT make integer operators of them.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from updp.deploy.int8.onnx_graph import LINEAR
from updp.io.quiet import silent
from updp.run.plain import INPUT

METHODS = ("percentile", "minmax", "entropy")
_BATCH = 32  # number of images whose activations are in memory at once


def fold(file: Path) -> Any:
    """Load the `onnx.ModelProto` of a file, with BatchNorms folded and constants computed."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, silent():
        folded = Path(folder) / "folded.onnx"
        # Symbolic inference needs sympy and fails on graphs of torch.export. The quantiser needs
        # only ranks and types, which are known without it.
        quant_pre_process(file, folded, skip_symbolic_shape=True)
        model = onnx.load(folded)
    # ONNX Runtime also declares its own operators, unused here, which other runtimes refuse.
    used = {node.domain for node in model.graph.node} | {""}
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    return model


def quantize_model(model: Any, images: Tensor, method: str, *, per_channel: bool) -> bytes:
    """The folded `model` in INT8, as bytes of an ONNX file, calibrated on `images` (N, C, H, W).

    `method` is one of `METHODS`. Weights have one scale per output channel, or one per tensor if
    `per_channel` is off. Raises any error of ONNX Runtime.
    """
    import onnx
    from onnxruntime import quantization as ort

    methods = {
        "percentile": ort.CalibrationMethod.Percentile,  # 99.999 %
        "minmax": ort.CalibrationMethod.MinMax,
        "entropy": ort.CalibrationMethod.Entropy,
    }
    # In the residual stream of a transformer, which LayerNorms read, a few channels have far larger
    # values: a common scale would round the others away, so only linear operators become INT8.
    norms = any(node.op_type == "LayerNormalization" for node in model.graph.node)
    with tempfile.TemporaryDirectory() as folder, silent():
        source, file = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)  # given a model in memory, the quantiser would remove its weights
        ort.quantize_static(
            source,
            file,
            _reader(images),
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=list(LINEAR) if norms else None,
            per_channel=per_channel,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            calibrate_method=methods[method],
            # Calibrates one batch at a time; otherwise all activations of all images are kept.
            extra_options={"CalibStridedMinMax": 1},
        )
        return file.read_bytes()


def _reader(images: Tensor) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """Batches of the images, one at a time; `set_range` selects some of them."""

        def __init__(self) -> None:
            self.batches = [batch.numpy() for batch in torch.split(images, _BATCH)]
            self.ahead = iter(self.batches)

        def __len__(self) -> int:
            return len(self.batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.ahead = iter(self.batches[start_index:end_index])

        def get_next(self) -> Any:
            batch = next(self.ahead, None)
            return None if batch is None else {INPUT: batch}

    return Reader()
