"""ONNX: one file for ONNX Runtime and other runtimes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from updp.deploy.export.base import OUTPUT, Format, Network
from updp.deploy.export.program import CapturedModel

_LIMIT = 1_900_000_000  # bytes of weights in one file: protobuf is limited to 2 GB


class Onnx(Format):
    """A graph from `images` (batch, C, H, W), or several inputs, to `logits` (batch, classes)."""

    name, suffix = "onnx", ".onnx"
    packages, extra = ("onnx", "onnxscript", "onnxruntime"), "onnx"

    def _save(self, program: CapturedModel, path: Path) -> None:
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass

        weights = program.exported.state_dict.values()
        written = torch.onnx.export(
            program.exported,
            dynamo=True,
            verbose=False,
            input_names=list(program.names),
            output_names=[OUTPUT],
            dynamic_shapes=program.arguments(program.axes),  # the names of the axes
        )
        assert written is not None
        ClearMetadataAndDocStringPass()(written.model)  # would contain stack traces of this machine
        written.save(path, external_data=sum(t.nbytes for t in weights) > _LIMIT)

    def _load(self, path: Path, names: Sequence[str]) -> Network:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

        def run(*inputs: Tensor) -> Tensor:
            given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
            (logits,) = session.run([OUTPUT], given)
            return torch.from_numpy(logits)

        return run

    def files(self, path: Path) -> tuple[Path, ...]:
        """The file, and the separate file of its weights if they are too large for one."""
        beside = path.with_name(f"{path.name}.data")
        return (path, beside) if beside.exists() else (path,)
