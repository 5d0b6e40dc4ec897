"""What is known of each exported file: kept in the run directory, for people and for the report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel

from updp.engine.files import read_json, write_json

FOLDER, FILE = "export", "exports.json"


class Exported(BaseModel):
    """One format, and how its file compares with the PyTorch model on real images.

    `files` are names in `folder`, the one to open first; `folder` is relative to the run
    directory, where it lies there. `max_abs` is the largest difference of
    any logit, `max_rel` that over the image's largest logit; `top1_agreement` is in percent.
    Of `images` images, `undecided` have two best logits within twice the `tolerance`; there
    either may win. `baseline_bytes` is the size of the baseline in the same format.
    """

    format: str
    folder: str
    files: list[str]
    bytes: int
    baseline_bytes: int | None  # where the baseline does not export
    parameters: int
    baseline_parameters: int
    images: int
    max_abs: float
    max_rel: float
    top1_agreement: float
    undecided: int
    tolerance: float
    dynamic: list[str]  # `batch`, and `height` and `width` where they are not fixed
    note: str  # why a size is fixed, or nothing
    input_sizes: list[tuple[int, int, int]]  # (C, H, W) at which the two were compared
    versions: dict[str, str]
    seconds: float


def read_exports(run: str | Path) -> dict[str, Exported]:
    """The records in a run directory, by format; empty where nothing was exported."""
    file = Path(run) / FOLDER / FILE
    known = read_json(file) if file.exists() else {}
    return {name: Exported.model_validate(record) for name, record in known.items()}


def add_exports(run: Path, records: Iterable[Exported]) -> None:
    """Put records beside those of other formats, in place of older ones of their own."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        known = read_exports(run) | {record.format: record for record in records}
        write_json(folder / FILE, {name: known[name].model_dump() for name in sorted(known)})
