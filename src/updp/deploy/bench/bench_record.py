"""The record of `updp bench`: one row for each setting, in a file that grows row by row."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Literal

from filelock import FileLock
from pydantic import BaseModel

from updp.errors import UserError
from updp.io.files import write_text
from updp.io.records import Record
from updp.measure import Timing
from updp.run.integrity import explained

Verdict = Literal["faster", "slower", "no difference"]


class Setting(BaseModel, frozen=True):
    """Runtime, threads and batch size with which two models are timed."""

    device: str  # what it calls itself
    runtime: str
    batch_size: int
    threads: int
    precision: str
    layout: str


class BenchFigures(BaseModel):
    """Figures of one model; None where the runtime or the machine does not tell."""

    ms: Timing  # of a batch
    images_per_second: float
    memory: int | None = None  # bytes of activations at the worst moment
    energy: float | None = None  # joules for an image


class Row(BaseModel):
    """Two models at one setting: figures, or a failure."""

    setting: Setting
    baseline: BenchFigures | None = None
    other: BenchFigures | None = None
    speedup: Timing | None = None  # how many times faster the other model is
    failure: str = ""  # why the two cannot run so
    rounds: int = 0
    energy_from: str = ""  # what counted the joules, or why there are none
    versions: dict[str, str] = {}
    command: list[str] = []

    @property
    def verdict(self) -> Verdict | None:
        """Whether the other model is faster, by quartiles; None where nothing was measured."""
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
        """The record with `row` in place of one of the same setting, or at the end.

        A failure does not replace what was measured.
        """
        rows = {old.setting: old for old in self.rows}
        old = rows.get(row.setting)
        if old is None or old.speedup is None or row.speedup is not None:
            rows[row.setting] = row
        return self.model_copy(update={"rows": list(rows.values())})

    def save(self, path: Path) -> None:
        """Write JSON atomically to any file. Raises UserError."""
        with explained():
            write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def open(cls, path: Path) -> Bench:
        """Read any file. Raises UserError that says to move it away."""
        try:
            return cls.read_file(path)
        except UserError as error:
            raise UserError(f"{error}; move it away") from error


def check_place(path: Path) -> None:
    """Raise UserError where `path` cannot be written, or is no record. Creates nothing."""
    existing = next(p for p in path.absolute().parents if p.exists())
    problem = ""
    if path.is_dir():
        problem = "it is a folder"
    elif not existing.is_dir():
        problem = f"'{existing}' is no folder"
    elif not os.access(existing, os.W_OK):
        problem = f"'{existing}' may not be written to"
    if problem:
        raise UserError(f"'{path}' cannot be written: {problem}")
    if path.exists():
        Bench.open(path)


def keep(path: Path, bench: Bench, row: Row) -> None:
    """Add `row` of `bench` to the record in `path`, where other processes may add rows too.

    Raises UserError where the file is no record, or cannot be written.
    """
    with explained():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):
            known = Bench.open(path) if path.exists() else bench.model_copy(update={"rows": []})
            bench.model_copy(update={"rows": known.rows}).with_row(row).save(path)
