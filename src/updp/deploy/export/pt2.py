"""PyTorch's own exported program: torch.export.load reads it without the model's code."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch

from updp.deploy.export.base import Format, Network
from updp.deploy.export.program import CapturedModel


class Pt2(Format):
    """An archive of graph and weights, for torch.export.load, AOTInductor and ExecuTorch."""

    name, suffix = "pt2", ".pt2"

    def _save(self, program: CapturedModel, path: Path) -> None:
        exported = copy.copy(program.exported)
        # The archive would contain pickled inputs. Before PyTorch 2.6 the property has no setter.
        exported._example_inputs = None
        torch.export.save(exported, path)

    def _load(self, path: Path, names: Sequence[str]) -> Network:
        # Calls the module and not its `forward`, because a hook checks the sizes of the input.
        return torch.inference_mode()(torch.export.load(path).module().__call__)
