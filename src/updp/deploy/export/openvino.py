"""OpenVINO's intermediate representation: the graph in `model.xml`, the weights in `model.bin`."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from updp.deploy.export.base import OUTPUT, Format, Network
from updp.deploy.export.onnx import Onnx
from updp.deploy.export.program import CapturedModel
from updp.measure.openvino import import_openvino


class OpenVino(Format):
    """The ONNX file converted, with its names and dynamic axes; float32 on disk and when run."""

    name, suffix = "openvino", ".xml"
    packages, extra = ("openvino", "onnx", "onnxscript"), "onnx,openvino"

    @staticmethod
    def _import(package: str) -> None:
        if package == "openvino":
            import_openvino()  # it disables its telemetry
        else:
            Format._import(package)

    def _save(self, program: CapturedModel, path: Path) -> None:
        openvino = import_openvino()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            Onnx().save(program, file)
            # openvino.convert_model does much the same, but sends telemetry.
            model = openvino.Core().read_model(file)
            passes = openvino.passes.Manager()
            passes.register_pass(openvino.passes.ConstantFolding())  # mostly shapes of biases
            passes.run_passes(model)
            openvino.save_model(model, path, compress_to_fp16=False)

    def _load(self, path: Path, names: Sequence[str]) -> Network:
        openvino = import_openvino()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # by default bfloat16 on CPUs that have it
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        compiled = openvino.Core().compile_model(path, "CPU", settings)

        def run(*inputs: Tensor) -> Tensor:
            given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
            return torch.from_numpy(compiled(given)[OUTPUT].copy())

        return run

    def files(self, path: Path) -> tuple[Path, ...]:
        """Graph and weights."""
        return path, path.with_suffix(".bin")
