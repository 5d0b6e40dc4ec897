"""PyTorch's own exported program: torch.export.load reads it, the model's code is not needed."""

import copy
from pathlib import Path

import torch
from torch import Tensor

from updp.deploy.export.base import Format, Network
from updp.deploy.export.program import CapturedModel


class Pt2(Format):
    """An archive of the graph and its weights, for torch.export.load, AOTInductor, ExecuTorch."""

    name, suffix = "pt2", ".pt2"

    def _save(self, program: CapturedModel, path: Path) -> None:
        plain = copy.copy(program.exported)
        plain._example_inputs = None  # they would be in the archive, pickled; no setter before 2.6
        torch.export.save(plain, path)

    def _load(self, path: Path) -> Network:
        network = torch.export.load(path).module()

        @torch.inference_mode()
        def run(images: Tensor) -> Tensor:
            return network(images)

        return run
