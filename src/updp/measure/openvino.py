"""OpenVINO: a module exported as for ONNX Runtime, compiled for the CPU, bound to its inputs."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from updp.errors import UserError
from updp.measure import onnxruntime
from updp.measure.importing import import_openvino

_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_CAPABILITIES = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}


def check(precision: str) -> None:
    """Raises UserError where OpenVINO is missing, or this CPU does not calculate so."""
    onnxruntime.check_installed("openvino", "onnx,openvino")
    # It would silently take another one.
    known = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if _CAPABILITIES[precision] not in known:
        able = [name for name, capability in _CAPABILITIES.items() if capability in known]
        raise UserError(
            f"measure.runtime=openvino does not calculate in measure.precision={precision} on "
            f"this CPU: take {' or '.join(able)}"
        )


def request(
    module: nn.Module, inputs: tuple[Any, ...], *, precision: str
) -> Callable[[], list[Any]]:
    """A function that runs the module's graph on `inputs`; it returns a list of NumPy arrays.

    The module and its inputs are float32, and so are the arrays, which the next run overwrites;
    `precision` is what OpenVINO calculates in. It uses as many threads as PyTorch.

    Raises UserError for inputs that are not on the CPU, and whatever exporter and runtime raise.
    """
    openvino = import_openvino()
    properties = openvino.properties
    hint = properties.hint
    tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    for x in tensors:
        if x.device.type != "cpu":
            raise UserError(f"measure.runtime=openvino runs on the CPU here, not on '{x.device}'")
    core = openvino.Core()
    config = {
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        hint.inference_precision: getattr(openvino.Type, _TYPES[precision]),
        properties.inference_num_threads: torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as folder:
        core.set_property({properties.enable_mmap: False})  # the file will be gone
        graph = core.read_model(onnxruntime.export(module, inputs, folder))
        compiled = core.compile_model(graph, "CPU", config)
    asked = compiled.create_infer_request()
    for index, x in enumerate(tensors):
        # A copy: memory that is shared OpenVINO does not keep.
        asked.set_input_tensor(index, openvino.Tensor(x.contiguous().numpy(), shared_memory=False))

    def run() -> list[Any]:
        asked.infer()
        return [output.data for output in asked.output_tensors]

    return run
