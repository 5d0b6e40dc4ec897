"""The record of `updp bench`: one row for each setting, in a file that grows row by row."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from filelock import FileLock
from pydantic import BaseModel

from updp.errors import MachineError, UserError
from updp.io.files import in_the_way, not_writable, write_text
from updp.io.records import Record
from updp.measure import Timing
from updp.run.integrity import explained

Verdict = Literal["faster", "slower", "no difference"]


class Setting(BaseModel, frozen=True):
    """Runtime, threads and batch size with which two models are timed."""

    device: str  # product name of the processor or GPU
    runtime: str  # such as `eager` or `onnxruntime`
    batch_size: int  # images in a batch
    threads: int  # threads of the processor
    precision: str  # type of the numbers that both compute with, such as `float32`
    layout: str  # memory layout of images, `contiguous` or `channels_last`


class BenchFigures(BaseModel):
    """Figures of one model; null if the runtime or the machine does not give them."""

    ms: Timing  # latency in ms for a batch
    images_per_second: float  # throughput at the median latency
    memory: int | None = None  # peak bytes of activations, including the input
    energy: float | None = None  # joules for an image


class Row(BaseModel):
    """Two models at one setting: figures, or a failure."""

    setting: Setting  # setting with which both models were timed
    baseline: BenchFigures | None = None  # figures of the baseline; null where the row is a failure
    other: BenchFigures | None = None  # figures of the other model; null likewise
    speedup: Timing | None = None  # how many times faster the other model is
    failure: str = ""  # why the two cannot run with this setting
    rounds: int = 0  # interleaved repetitions; 0 where the row is a failure
    energy_from: str = ""  # what counted the joules, or why there are none
    versions: dict[str, str] = {}  # versions of Python and of installed packages
    command: list[str] = []  # command line that measured the row

    @property
    def verdict(self) -> Verdict | None:
        """Whether the other model is faster, by quartiles; None if nothing was measured."""
        if self.speedup is None:
            return None
        if self.speedup.low > 1:
            return "faster"
        return "slower" if self.speedup.high < 1 else "no difference"


class Bench(Record):
    """All rows about two models."""

    FILE: ClassVar[str] = "bench/bench.json"
    WHAT: ClassVar[str] = "a record of `updp bench`"
    names: tuple[str, str]  # names of the baseline and of the other model
    # Shape of a sample, (C, H, W) of an image; empty where inputs are no one tensor.
    input_shape: tuple[int, ...]
    rows: list[Row] = []  # one row for each setting  # noqa: RUF012

    @property
    def measured(self) -> list[Row]:
        """The rows that have figures, not failures."""
        return [row for row in self.rows if row.speedup is not None]

    def with_row(self, row: Row) -> Bench:
        """The record with `row` in place of the one with the same setting, or at the end.

        A failure does not replace a measurement.
        """
        rows = {old.setting: old for old in self.rows}
        old = rows.get(row.setting)
        if old is None or old.speedup is None or row.speedup is not None:
            rows[row.setting] = row
        return self.model_copy(update={"rows": list(rows.values())})

    def save(self, path: Path) -> None:
        """Write JSON to any file, atomically. Raises UserError."""
        with explained():
            write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def open(cls, path: Path) -> Bench:
        """Read a record from any file. Raises UserError that advises to move the file away."""
        try:
            return cls.read_file(path)
        except UserError as error:
            raise UserError(f"{error}; move it away") from error


def check_place(path: Path) -> None:
    """Raise UserError if `path` cannot be written, or is not a record. Creates nothing.

    It is a MachineError if permission is missing.
    """
    problem = "it is a folder" if path.is_dir() else in_the_way(path.parent)
    if problem:
        raise UserError(f"'{path}' cannot be written: {problem}")
    if blocked := not_writable(path.parent):
        raise MachineError(f"'{path}' cannot be written: '{blocked}' may not be written to")
    if path.exists():
        Bench.open(path)


def keep(path: Path, bench: Bench, row: Row) -> None:
    """Add `row` of `bench` to the record in `path`, to which other processes may add rows, too.

    Raises UserError if the file is not a record, or cannot be written.
    """
    with explained():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):
            known = Bench.open(path) if path.exists() else bench.model_copy(update={"rows": []})
            bench.model_copy(update={"rows": known.rows}).with_row(row).save(path)
