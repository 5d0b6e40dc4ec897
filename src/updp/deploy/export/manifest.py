"""What is known of each exported file: kept in the run directory, for people and for the report."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from filelock import FileLock
from pydantic import BaseModel

from updp.io.files import remove
from updp.io.records import Record

FOLDER = "export"
PREPROCESS = "preprocess.json"  # beside the files of every folder


class Exported(BaseModel):
    """One format, and how its file compares with the PyTorch model on real images.

    `files` are names in `folder`, the one to open first; `folder` is relative to the run
    directory, where it lies there. `max_abs` is the largest difference of
    any logit, `max_rel` that over the image's largest logit; `top1_agreement` is in percent.
    Of `images` images, `undecided` have two best logits within twice the `tolerance`; there
    either may win. `baseline_bytes` is the size of the baseline in the same format.

    >>> (record,) = updp.export("runs/mine", "safetensors")
    >>> record.folder, record.files[0]
    ('export', 'model.safetensors')
    >>> record.bytes > 0 and record.parameters < record.baseline_parameters
    True
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


class Exports(Record):
    """All exports of a run, by format."""

    FILE: ClassVar[str] = "export/exports.json"
    exports: dict[str, Exported] = {}  # noqa: RUF012


class Written(Record):
    """Names of the files that exports of the run put into each folder."""

    FILE: ClassVar[str] = "export/.written.json"
    names: dict[str, list[str]] = {}  # noqa: RUF012


def read_exports(run: str | Path) -> dict[str, Exported]:
    """The records in a run directory, by format; empty where nothing was exported."""
    return (Exports.read_if_there(Path(run)) or Exports()).exports


def add_exports(run: Path, records: Iterable[Exported]) -> None:
    """Put records beside those of other formats, in place of older ones of their own."""
    with _lock(run):
        _write(run, read_exports(run) | {record.format: record for record in records})


def begin_writing(run: Path, form: str, folder: Path, names: Iterable[str]) -> None:
    """Before files change: forget the format's record, and note whose `names` in `folder` are.

    So a kill leaves no record of files that are not those, and files that a new export replaces.
    """
    place = within(folder, run)
    with _lock(run):
        noted = _noted(run)
        noted[place] = sorted({*noted.get(place, []), *names})
        Written(names=noted).write(run)
        _write(run, {name: r for name, r in read_exports(run).items() if name != form})


def written(run: Path, folder: Path) -> set[str]:
    """Names in `folder` of files that exports of this run put there."""
    place = within(folder, run)
    names = set(_noted(run).get(place, []))
    for record in read_exports(run).values():
        if record.folder == place:
            names |= {*record.files, PREPROCESS}
    return names


def within(folder: Path, run: Path) -> str:
    """The folder relative to the run directory, where it lies there, else its whole path."""
    inner, outer = folder.resolve(), run.resolve()
    return str(inner.relative_to(outer) if inner.is_relative_to(outer) else inner)


def _lock(run: Path) -> FileLock:
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    return FileLock(run / FOLDER / ".lock")


def _noted(run: Path) -> dict[str, list[str]]:
    return (Written.read_if_there(run) or Written()).names


def _write(run: Path, records: dict[str, Exported]) -> None:
    if records:
        Exports(exports={name: records[name] for name in sorted(records)}).write(run)
    else:
        remove(Exports.path(run))
