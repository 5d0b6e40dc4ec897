"""Run a module in OpenVINO: export it to ONNX, compile it for the CPU, bind its inputs."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from updp.errors import UserError, needs_extra
from updp.measure import onnxruntime

_TELEMETRY = "openvino_telemetry"
_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_CAPABILITIES = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which sends an event over the network on import.

    If OpenVINO was already imported, it stays as it is. Raises ImportError.
    """
    with nullcontext() if "openvino" in sys.modules else _hidden(_TELEMETRY):
        import openvino  # first, so that an error names the package
        import openvino.passes
    return openvino


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Context in which imports of `package` fail as if it were not installed."""
    before = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == package}
    for name in before:
        del sys.modules[name]
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(before)


def check(precision: str) -> None:
    """Check that OpenVINO is installed and that this CPU computes in `precision`.

    Raises UserError if not.
    """
    try:
        openvino = import_openvino()
        for package in onnxruntime.EXPORT_PACKAGES:
            import_module(package)
    except ImportError as error:
        raise needs_extra("measure.runtime=openvino", error.name, "onnx,openvino") from error
    # Otherwise OpenVINO would silently compute in another precision.
    known = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if _CAPABILITIES[precision] not in known:
        supported = [name for name, capability in _CAPABILITIES.items() if capability in known]
        raise UserError(
            f"measure.runtime=openvino does not calculate in measure.precision={precision} on "
            f"this CPU: take {' or '.join(supported)}"
        )


def request(
    module: nn.Module, inputs: tuple[Any, ...], *, precision: str
) -> Callable[[], list[Any]]:
    """Return a function that runs the module on `inputs`, with as many threads as PyTorch uses.

    The module, its inputs and the NumPy arrays that the function returns are float32; OpenVINO
    computes in `precision`. The next call of the function overwrites these arrays.

    Raises UserError if an input is not on the CPU. Errors of the exporter and of OpenVINO pass
    through.
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
        core.set_property({properties.enable_mmap: False})  # the file is deleted before the run
        graph = core.read_model(onnxruntime.export(module, inputs, folder))
        compiled = core.compile_model(graph, "CPU", config)
    infer_request = compiled.create_infer_request()
    for index, x in enumerate(tensors):
        # A copy, because OpenVINO keeps no reference to memory that it shares.
        tensor = openvino.Tensor(x.contiguous().numpy(), shared_memory=False)
        infer_request.set_input_tensor(index, tensor)

    def run() -> list[Any]:
        infer_request.infer()
        return [output.data for output in infer_request.output_tensors]

    return run
