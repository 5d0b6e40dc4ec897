"""OpenVINO's intermediate representation: the graph in `model.xml`, the weights in `model.bin`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from updp.exports.base import INPUT, OUTPUT, Format, Network
from updp.exports.onnx import Onnx
from updp.exports.program import Program

_TELEMETRY = "openvino_telemetry"


class OpenVino(Format):
    """Made from ONNX; names and dynamic axes are the same. Float32, in the file and when run."""

    name, suffix = "openvino", ".xml"
    packages, extra = ("openvino", "onnx", "onnxscript"), "onnx,openvino"

    def _save(self, program: Program, path: Path) -> None:
        openvino = import_openvino()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            Onnx().save(program, file)
            # Not openvino.convert_model, which does much the same and tells its makers.
            model = openvino.Core().read_model(file)
            passes = openvino.passes.Manager()
            passes.register_pass(openvino.passes.ConstantFolding())  # shapes of biases, mostly
            passes.run_passes(model)
            openvino.save_model(model, path, compress_to_fp16=False)

    def _load(self, path: Path) -> Network:
        openvino = import_openvino()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 on CPUs that have it
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        compiled = openvino.Core().compile_model(path, "CPU", settings)

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(compiled({INPUT: images.numpy()})[OUTPUT].copy())

        return run

    def files(self, path: Path) -> tuple[Path, ...]:
        """Graph and weights."""
        return path, path.with_suffix(".bin")

    @staticmethod
    def _import(package: str) -> object:
        return import_openvino() if package == "openvino" else Format._import(package)


def import_openvino() -> Any:
    """The package, without its telemetry: left alone, importing it sends an event over the net.

    Where it was imported before, whoever did so has settled that. Raises ImportError.
    """
    if "openvino" in sys.modules:
        import openvino.passes

        return openvino
    with _absent(_TELEMETRY):
        import openvino.passes
    return openvino


@contextmanager
def _absent(package: str) -> Iterator[None]:
    """While it lasts, importing the package fails as if it were not installed."""
    before = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == package}
    for name in before:
        del sys.modules[name]
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(before)
