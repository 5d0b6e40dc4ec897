"""Schemas of the JSON files in the run directory.

| file | record |
| --- | --- |
| `run.json` | `RunRecord` |
| `STAGE/key.json`, `STAGE/done.json` | the stage's key, `Done` |
| `sites/sites.json` | `search.Survey` |
| `search/front.json` | `search.SearchResult` |
| `search/plan.json`, `plan.json` | `Plan` |
| `subnet/fit.json` | `supernet.FitRecord` |
| `merge/checks.json` | `stages.verify.Checks` |
| `merge/result.json`, `result.json` | `Result` |

Exports, INT8 and benchmarks have their own records, in `deploy`.
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import nn

from updp.errors import UserError
from updp.io import processes
from updp.io.records import Record
from updp.measure import Timing
from updp.models import is_code
from updp.stages.context import RunInputs


class RunRecord(Record):
    """Model, data and environment of a run; objects that came from Python have empty names."""

    FILE: ClassVar[str] = "run.json"
    model: str
    weights: str = ""
    teacher: str = ""
    teacher_weights: str = ""
    data: str
    test: str = ""
    classes: tuple[str, ...]
    input_shape: tuple[Annotated[int, Field(ge=1, le=2**14)], ...]
    device: str = ""
    threads: int = 0
    processes: int = 1
    versions: dict[str, str] = {}  # noqa: RUF012
    command: tuple[str, ...] = ()

    @classmethod
    def of(cls, inputs: RunInputs) -> RunRecord:
        """The record of a run that this process begins."""
        return cls(
            **vars(inputs.names),
            classes=inputs.classes,
            input_shape=inputs.feed.image_size,
            device=str(inputs.feed.device),
            threads=torch.get_num_threads(),
            processes=processes.count(),
            versions=versions(),
            command=tuple(sys.argv),
        )

    def trusted(self, field: str, run: Path) -> str:
        """The name of the `model` or `teacher`, which may be empty but is no name of code.

        A run directory may be a stranger's: what it names is not run by its own word.

        Raises:
            UserError: it names a Python file.
        """
        name: str = getattr(self, field)
        if is_code(name):
            raise UserError(
                f"'{run}' names the Python file of its {field}, {name!r}, which is run only where "
                f"you name it, too: give --{field} {name} (in Python {field}={name!r})"
            )
        return name

    def weights_for(
        self, model: nn.Module | str | None, weights: str | Path | None
    ) -> str | Path | None:
        """The file to open: `weights` if given, else the run's own for the run's own model."""
        own = self.weights if model in (None, self.model) else ""
        return weights or own or None


class StoredFile(BaseModel, frozen=True):
    """Length and checksum of a file."""

    bytes: int
    sha256: str


class Done(Record):
    """Mark that a stage has ended; `files` are those that it left, by name.

    Stages that an earlier version of updp ended have none.
    """

    FILE: ClassVar[str] = "done.json"
    files: dict[str, StoredFile] | None = None


class ModelFigures(BaseModel, frozen=True):
    """Figures of one model: top-1 in percent, MACs for one image, latency in ms for a batch.

    Where the test images have no labels, there is no top-1 but the agreement: percent of the images
    that the model puts into the same class as the baseline.
    """

    top1: float | None
    agreement: float | None = None
    parameters: int
    macs: int
    latency: Timing

    @property
    def percent(self) -> float:
        """Top-1, or else the agreement with the baseline."""
        value = self.agreement if self.top1 is None else self.top1
        assert value is not None
        return value


class Result(Record):
    """The final figures of a run; accuracies are top-1 on the test split, in percent.

    Without labels agreement stands in their place, see `ModelFigures`.
    """

    FILE: ClassVar[str] = "result.json"
    baseline: ModelFigures
    merged: ModelFigures
    speedup: Timing
    top1_by_stage: dict[str, float]  # empty where there are no labels
    agreement_by_stage: dict[str, float] = {}  # noqa: RUF012
    test_images: int
    batch_size: int
    device: str
    merge_error: dict[str, float]

    @property
    def measure(self) -> str:
        """What `percent` and `by_stage` are: top-1, or agreement with the baseline."""
        return "agreement" if self.baseline.top1 is None else "top-1"

    @property
    def by_stage(self) -> dict[str, float]:
        """Top-1, or else the agreement with the baseline, after each stage."""
        return self.top1_by_stage or self.agreement_by_stage

    @property
    def faster(self) -> bool:
        """Whether the merged model is faster beyond the noise."""
        return self.speedup.low > 1


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that affect the figures."""
    found = {"python": platform.python_version()}
    for name in ("updp", "torch", "torchvision", "timm", "optuna", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
