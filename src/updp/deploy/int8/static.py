"""Static quantisation by ONNX Runtime: signed weights, unsigned activations, in QDQ form.

The file holds ordinary ONNX operators between pairs of QuantizeLinear and DequantizeLinear, which
every runtime reads as it can: ONNX Runtime, OpenVINO and TensorRT make integer operators of them.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from updp.deploy.export.base import INPUT
from updp.deploy.int8.onnx_graph import LINEAR
from updp.errors import needs_extra
from updp.io.quiet import silent

METHODS = ("percentile", "minmax", "entropy")
_BATCH = 32  # images whose activations are in memory at once


def check_installed() -> None:
    """Raises UserError that says what to install."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise needs_extra("INT8", error.name, "onnx") from error


def fold(file: Path) -> Any:
    """The model in an ONNX file with its BatchNorms folded and constants computed."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, silent():
        folded = Path(folder) / "folded.onnx"
        # The symbolic inference needs sympy and fails on graphs of torch.export; ranks and types,
        # which are all the quantiser asks for, are known without it.
        quant_pre_process(file, folded, skip_symbolic_shape=True)
        model = onnx.load(folded)
    used = {node.domain for node in model.graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in used | {""}]
    del model.opset_import[:]
    model.opset_import.extend(kept)  # without those of ONNX Runtime that no operator is from
    return model


def quantize_model(model: Any, images: Tensor, method: str, *, per_channel: bool) -> bytes:
    """The folded `model` in INT8; ranges of activations are those it has on `images` (N, C, H, W).

    Where a LayerNormalization reads the residual stream only the linear operators are quantised:
    a few channels of such streams are far wider than all others.
    """
    import onnx
    from onnxruntime import quantization as ort

    methods = {
        "percentile": ort.CalibrationMethod.Percentile,  # of 99.999 %
        "minmax": ort.CalibrationMethod.MinMax,
        "entropy": ort.CalibrationMethod.Entropy,
    }
    norms = any(node.op_type == "LayerNormalization" for node in model.graph.node)
    reader = _reader(images)
    with tempfile.TemporaryDirectory() as folder, silent():
        source, file = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)  # of a model in memory the quantiser would take the weights out
        ort.quantize_static(
            source,
            file,
            reader,
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=list(LINEAR) if norms else None,
            per_channel=per_channel,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            calibrate_method=methods[method],
            # One batch at a time: without it all activations of all images are kept.
            extra_options={"CalibStridedMinMax": 1},
        )
        return file.read_bytes()


def _reader(images: Tensor) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """Batches from `set_range`'s first to its last."""

        def __init__(self, batches: Sequence[Tensor]) -> None:
            self.batches = [batch.numpy() for batch in batches]
            self.ahead = iter(self.batches)

        def __len__(self) -> int:
            return len(self.batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.ahead = iter(self.batches[start_index:end_index])

        def get_next(self) -> Any:
            batch = next(self.ahead, None)
            return None if batch is None else {INPUT: batch}

    return Reader(torch.split(images, _BATCH))
