"""What the user gave for a run: objects, names or paths, as yet unopened."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from updp.data import Loader
from updp.models.teacher import BASELINE
from updp.stages.context import InputNames
from updp.tasks import Task

Data = str | Path | Loader | tuple[Loader, Loader]
Test = str | Path | Loader


@dataclass(frozen=True)
class Given:
    """The model, the data and what belongs to them; the fields are arguments of `updp.prune`."""

    model: nn.Module | str
    data: Data
    test: Test | None = None
    weights: str | Path | None = None
    teacher: nn.Module | str | None = None
    teacher_weights: str | Path | None = None
    unlabelled: str | Path | None = None
    task: Task | str | None = None

    @property
    def names(self) -> InputNames:
        """The names and paths among these; "" for an object of the user's, or none."""
        named = {f.name: getattr(self, f.name) for f in fields(InputNames)}
        if named["teacher"] == BASELINE:
            del named["teacher"]
        return InputNames(**{k: str(v) for k, v in named.items() if isinstance(v, str | Path)})
