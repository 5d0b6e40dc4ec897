"""Run a module in ONNX Runtime: export it, load it, and bind it to its inputs."""

import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from updp.blocks.nested import arguments_of
from updp.errors import UserError, needs_extra

EXPORT_PACKAGES = ("onnx", "onnxscript")  # imported by torch.onnx.export
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def check_installed() -> None:
    """Raise UserError with an install command if ONNX Runtime or the exporter is missing."""
    try:
        for package in ("onnxruntime", *EXPORT_PACKAGES):
            import_module(package)
    except ImportError as error:
        raise needs_extra("measure.runtime=onnxruntime", error.name, "onnx") from error


def export(module: nn.Module, inputs: tuple[Any, ...], folder: str) -> str:
    """Write the module's ONNX graph into `folder` and return the file's path.

    Tensors in `inputs` are the graph's inputs, in order; other values become constants.
    Errors of the exporter pass through.
    """
    file = str(Path(folder) / "module.onnx")  # a graph in memory is limited to 2 GB
    with torch.no_grad():
        args, kwargs = arguments_of(*inputs)
        torch.onnx.export(module, args, file, kwargs=kwargs, dynamo=True, verbose=False)
    return file


def session(module: nn.Module, inputs: tuple[Any, ...]) -> Callable[[], object]:
    """Return a function that runs the module's ONNX graph on `inputs`, to a list of `OrtValue`s.

    Inputs and outputs stay on the device of `inputs`. Values other than tensors become constants.

    Raises UserError if the installed ONNX Runtime does not support the device. Errors of the
    exporter and of the runtime pass through.
    """
    import onnxruntime

    tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    provider = _PROVIDERS.get(device.type)
    if provider not in onnxruntime.get_available_providers():
        raise UserError(
            f"measure.runtime=onnxruntime: the ONNX Runtime that is installed knows no '{device}'"
        )
    ort_device = (device.type, device.index or 0)
    providers = [(provider, {"device_id": ort_device[1]} if device.type == "cuda" else {})]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    # Threads of one session that busy-wait would take cores from the other session being timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as folder:
        loaded = onnxruntime.InferenceSession(export(module, inputs, folder), options, providers)
    binding = loaded.io_binding()
    for node, x in zip(loaded.get_inputs(), tensors, strict=True):
        value = onnxruntime.OrtValue.ortvalue_from_numpy(x.cpu().numpy(), *ort_device)
        binding.bind_ortvalue_input(node.name, value)
    for node in loaded.get_outputs():
        binding.bind_output(node.name, *ort_device)

    def run() -> object:
        loaded.run_with_iobinding(binding)
        return binding.get_outputs()

    return run
