"""What `updp bench` measured: one row for each setting, and where it is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from updp.errors import UserError, reason
from updp.io.files import write_text
from updp.io.records import Record
from updp.measure import Timing

Verdict = Literal["faster", "slower", "no difference"]


class Setting(BaseModel):
    """How the two models are run."""

    model_config = ConfigDict(frozen=True)

    device: str  # what it calls itself
    runtime: str
    batch_size: int
    threads: int
    precision: str
    layout: str


class BenchFigures(BaseModel):
    """One of the two models: ms for a batch, bytes of activations, joules for an image."""

    ms: Timing
    images_per_second: float
    memory: int | None = None
    energy: float | None = None


class Row(BaseModel):
    """Two models at one setting; `speedup` is how many times faster the other is.

    Where they cannot run so, `failure` says why, and there are no figures. `versions` and `command`
    say what measured the row.
    """

    setting: Setting
    baseline: BenchFigures | None = None
    other: BenchFigures | None = None
    speedup: Timing | None = None
    failure: str = ""
    rounds: int = 0
    energy_from: str = ""  # what counted the joules, or why there are none
    versions: dict[str, str] = {}
    command: list[str] = []

    @property
    def verdict(self) -> Verdict | None:
        """What the quartiles of the ratio allow to be said; None where nothing was measured."""
        if self.speedup is None:
            return None
        if self.speedup.low > 1:
            return "faster"
        return "slower" if self.speedup.high < 1 else "no difference"


class Bench(Record):
    """All rows about two models; `names` are the baseline's and the other's."""

    FILE: ClassVar[str] = "bench/bench.json"
    WHAT: ClassVar[str] = "a record of `updp bench`"
    names: tuple[str, str]
    input_shape: tuple[int, ...]
    rows: list[Row] = []  # noqa: RUF012

    @property
    def measured(self) -> list[Row]:
        """The rows that have figures."""
        return [row for row in self.rows if row.speedup is not None]

    def with_row(self, row: Row) -> Bench:
        """With `row` in place of one of the same setting, or at the end.

        What was measured is not given up for a failure.
        """
        rows = list(self.rows)
        for index, old in enumerate(rows):
            if old.setting == row.setting:
                if row.speedup is not None or old.speedup is None:
                    rows[index] = row
                return self.model_copy(update={"rows": rows})
        return self.model_copy(update={"rows": [*rows, row]})

    def save(self, path: Path) -> None:
        """Write JSON atomically. Raises UserError."""
        try:
            write_text(path, self.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise UserError(f"'{path}' cannot be written: {reason(error)}") from error

    @classmethod
    def open(cls, path: Path) -> Bench:
        """The record in a file. Raises UserError."""
        try:
            return cls.read_file(path)
        except UserError as error:
            raise UserError(f"{error}; move it away") from error


def check_place(path: Path) -> None:
    """Raises UserError where no record can be written as `path`, or something else is there.

    Nothing is made.
    """
    there = next(p for p in path.absolute().parents if p.exists())
    problem = ""
    if path.is_dir():
        problem = "it is a folder"
    elif not there.is_dir():
        problem = f"'{there}' is no folder"
    elif not os.access(there, os.W_OK):
        problem = f"'{there}' may not be written to"
    if problem:
        raise UserError(f"'{path}' cannot be written: {problem}")
    if path.exists():
        Bench.open(path)


def keep(path: Path, bench: Bench, row: Row) -> None:
    """Add `row` of `bench` to the record in `path`, which other processes may add to as well.

    Raises UserError where the file is something else's, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):
            known = Bench.open(path) if path.exists() else bench.model_copy(update={"rows": []})
            bench.model_copy(update={"rows": known.rows}).with_row(row).save(path)
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {reason(error)}") from error
