"""ONNX Runtime: a module exported, loaded, and bound to its inputs."""

import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from updp.errors import UserError, needs_extra
from updp.measure.importing import import_openvino

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def check_installed(runtime: str = "onnxruntime", extra: str = "onnx") -> None:
    """Raises UserError that says what to install for the runtime: it, or what exports to it."""
    try:
        for name in (runtime, "onnx", "onnxscript"):
            import_openvino() if name == "openvino" else import_module(name)
    except ImportError as error:
        raise needs_extra(f"measure.runtime={runtime}", error.name, extra) from error


def export(module: nn.Module, inputs: tuple[Any, ...], folder: str) -> str:
    """Write the module's ONNX graph into `folder`; returns the file. Raises what the exporter does.

    Tensors among `inputs` are the graph's inputs, in order; what is no tensor becomes part of it.
    """
    file = str(Path(folder) / "module.onnx")  # in memory it could not exceed 2 GB
    with torch.no_grad():
        torch.onnx.export(module, inputs, file, dynamo=True, verbose=False)
    return file


def session(module: nn.Module, inputs: tuple[Any, ...]) -> Callable[[], object]:
    """A function that runs the module's ONNX graph on `inputs`; it returns a list of `OrtValue`s.

    Inputs and outputs stay on the device of `inputs`. What is no tensor becomes part of the graph.

    Raises UserError where the installed ONNX Runtime does not know the device, and whatever the
    exporter and the runtime raise.
    """
    import onnxruntime

    tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    provider = _PROVIDERS.get(device.type)
    if provider not in onnxruntime.get_available_providers():
        raise UserError(
            f"measure.runtime=onnxruntime: the ONNX Runtime that is installed knows no '{device}'"
        )
    place = (device.type, device.index or 0)
    providers = [(provider, {"device_id": place[1]} if device.type == "cuda" else {})]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    with tempfile.TemporaryDirectory() as folder:
        loaded = onnxruntime.InferenceSession(export(module, inputs, folder), options, providers)
    binding = loaded.io_binding()
    for given, x in zip(loaded.get_inputs(), tensors, strict=True):
        value = onnxruntime.OrtValue.ortvalue_from_numpy(x.cpu().numpy(), *place)
        binding.bind_ortvalue_input(given.name, value)
    for output in loaded.get_outputs():
        binding.bind_output(output.name, *place)

    def run() -> object:
        loaded.run_with_iobinding(binding)
        return binding.get_outputs()

    return run
