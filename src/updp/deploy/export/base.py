"""One file format that other runtimes load: how it is written, and how a written file is run."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from updp.deploy.export.program import CapturedModel, capture
from updp.errors import needs_extra, reason
from updp.io.quiet import quiet

_log = logging.getLogger(__name__)
INPUT, OUTPUT = "images", "logits"

Network = Callable[[Tensor], Tensor]  # images (N, C, H, W) to logits (N, classes), on the CPU


class Format(ABC):
    """Subclasses say what the format is called, which packages it needs, and do both directions.

    All files are float32, and take batches of any size.
    """

    name: ClassVar[str]  # as --to takes it
    suffix: ClassVar[str]  # of the file that is opened: `model.onnx`
    packages: ClassVar[tuple[str, ...]] = ()  # beyond torch; all must be importable
    extra: ClassVar[str] = ""  # of updp, which brings them

    def check(self) -> None:
        """Raises UserError where a package is missing, with the command that installs it."""
        for package in self.packages:
            try:
                self._import(package)
            except ImportError as error:
                raise needs_extra(f"export to {self.name}", package, self.extra) from error

    def write(self, model: nn.Module, example: Tensor, path: Path) -> CapturedModel:
        """Write `model` (evaluation mode) to the file `path`; more files may lie beside it.

        `example` is a batch of images (N, C, H, W), N >= 1; only its shape matters. Height and
        width are dynamic where model and exporter admit it, as the returned program says.

        Raises UserError where a package is missing, or torch.export does not read the model.
        """
        self.check()
        program = capture(model, example)
        try:
            self.save(program, path)
        except Exception as error:  # of a converter that takes no other size
            if not program.any_size:
                raise
            _log.info("%s: height and width are fixed: %s", self.name, reason(error))
            program = capture(model, example, any_size=False)
            self.save(program, path)
        return program

    def save(self, program: CapturedModel, path: Path) -> None:
        """Write a captured model; not atomic. Raises whatever the converter raises."""
        with quiet():
            self._save(program, path)

    def load(self, path: Path) -> Network:
        """The written file as a function, run by its own runtime, `updp` not involved."""
        with quiet():
            return self._load(path)

    def files(self, path: Path) -> tuple[Path, ...]:
        """All that belongs to the file `path`, the file itself first."""
        return (path,)

    def versions(self) -> dict[str, str]:
        """Versions of what wrote and ran the file."""
        return {name: version(name) for name in ("torch", *self.packages)}

    @abstractmethod
    def _save(self, program: CapturedModel, path: Path) -> None: ...

    @abstractmethod
    def _load(self, path: Path) -> Network: ...

    @staticmethod
    def _import(package: str) -> object:
        return import_module(package)
