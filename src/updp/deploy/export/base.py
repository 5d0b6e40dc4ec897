"""File formats for other runtimes: how to write a file, and how to run it for comparison."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from updp.blocks.nested import Samples
from updp.deploy.export.program import CapturedModel, capture
from updp.errors import needs_extra, reason
from updp.io.quiet import quiet
from updp.run.plain import INPUT

_log = logging.getLogger(__name__)
OUTPUT = "logits"  # name of the graph's output

Network = Callable[..., Tensor]  # images (N, C, H, W), or several inputs, to logits, on the CPU


class Format(ABC):
    """One file format: subclasses name it and its packages, and write and load its files.

    All files are float32, and accept batches of any size.
    """

    name: ClassVar[str]  # name for the option --to
    suffix: ClassVar[str]  # extension of the main file, such as `.onnx`
    packages: ClassVar[tuple[str, ...]] = ()  # required packages besides torch
    extra: ClassVar[str] = ""  # extra of updp that installs them

    def check(self, purpose: str = "") -> None:
        """Raise UserError if a package is missing, with the command that installs it."""
        for package in self.packages:
            try:
                self._import(package)
            except ImportError as error:
                purpose = purpose or f"export to {self.name}"
                raise needs_extra(purpose, package, self.extra) from error

    def write(
        self, model: nn.Module, example: Samples, path: Path, names: Sequence[str] = (INPUT,)
    ) -> CapturedModel:
        """Capture `model` and save it as the file `path`, as INT8 does for its float32 file.

        Of images (N, C, H, W) only the shape matters.

        Sizes are dynamic if model and converter allow it; the returned program says so. Raises
        UserError if a package is missing, or if torch.export cannot read the model.
        """
        self.check()
        program = capture(model, example, names=names)
        try:
            self.save(program, path)
        except Exception as error:  # a converter may reject dynamic sizes; each has its own errors
            if not program.any_size:
                raise
            _log.info("%s: sizes are fixed: %s", self.name, reason(error))
            program = capture(model, example, names=names, any_size=False)
            self.save(program, path)
        return program

    def save(self, program: CapturedModel, path: Path) -> None:
        """Write a captured model, not atomically. Raises any error of the converter."""
        with quiet(), torch.no_grad():  # some complex operations have no gradient
            self._save(program, path)

    def load(self, path: Path, names: Sequence[str] = (INPUT,)) -> Network:
        """Load a written file as a function that its own runtime runs, without `updp`.

        The function takes the inputs with these `names` by position.
        """
        with quiet():
            return self._load(path, names)

    def files(self, path: Path) -> tuple[Path, ...]:
        """All files that belong to `path`, the main file first."""
        return (path,)

    def versions(self) -> dict[str, str]:
        """Versions of the packages that wrote and ran the file."""
        return {name: version(name) for name in ("torch", *self.packages)}

    @staticmethod
    def _import(package: str) -> None:
        import_module(package)

    @abstractmethod
    def _save(self, program: CapturedModel, path: Path) -> None: ...

    @abstractmethod
    def _load(self, path: Path, names: Sequence[str]) -> Network: ...
