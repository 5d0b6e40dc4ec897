"""Weights as safetensors, with the network as plain Python beside them."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from updp.deploy.export.base import Format, Network
from updp.deploy.export.program import CapturedModel
from updp.deploy.export.source import write_source
from updp.errors import UserError
from updp.io.files import write_tensors, write_text


class Safetensors(Format):
    """`model.safetensors` and `model.py`, which load the module without updp."""

    name, suffix = "safetensors", ".safetensors"
    packages = ("safetensors",)

    def _save(self, program: CapturedModel, path: Path) -> None:
        try:
            source = write_source(program, path.name)
        except ValueError as error:
            raise UserError(f"export to safetensors: {error}; take another format") from error
        write_tensors(path, source.tensors)
        write_text(path.with_suffix(".py"), source.text)

    def _load(self, path: Path, names: Sequence[str]) -> Network:
        # Not added to sys.modules: the next export writes another module with this name.
        spec = importlib.util.spec_from_file_location("updp_exported", path.with_suffix(".py"))
        assert spec is not None
        assert spec.loader is not None
        page = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(page)
        network: nn.Module = page.load(path)
        return torch.inference_mode()(network.__call__)

    def files(self, path: Path) -> tuple[Path, ...]:
        """Weights and Python."""
        return path, path.with_suffix(".py")
