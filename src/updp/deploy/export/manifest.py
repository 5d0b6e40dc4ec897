"""Records of exported files, always in the run directory, wherever the files are."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from filelock import FileLock
from pydantic import BaseModel

from updp.io.files import remove
from updp.io.records import Record

FOLDER = "export"
PREPROCESS = "preprocess.json"  # in every folder of exported files


class Exported(BaseModel):
    """One format, and how its file compares with the PyTorch model on real images.

    >>> (record,) = updp.export("runs/mine", "safetensors")
    >>> record.folder, record.files[0]
    ('export', 'model.safetensors')
    >>> record.bytes > 0 and record.parameters < record.baseline_parameters
    True
    """

    format: str  # name of the format, such as `onnx`
    folder: str  # path of the folder, relative to the run directory if inside
    files: list[str]  # names of the files in `folder`, the one to open first
    bytes: int  # length of all files together
    # The same of the baseline; null where it does not export to the format.
    baseline_bytes: int | None
    parameters: int  # number of scalar parameters
    baseline_parameters: int  # the same for the baseline
    images: int  # test images on which file and PyTorch were compared
    max_abs: float  # largest difference of a logit from PyTorch's, at any of the sizes
    max_rel: float  # largest difference of a logit over the image's largest logit
    # Percent of images whose best class agrees, or is undecided; 100 in other tasks.
    top1_agreement: float
    undecided: int  # images whose two best logits are within twice the tolerance: either may win
    tolerance: float  # largest difference of a logit that is allowed at the run's own size
    # Dynamic axes: `batch`, and `height`, `width` or `length` where they are not fixed.
    dynamic: list[str]
    note: str  # why a size is fixed; empty where none is
    input_sizes: list[tuple[int, ...]]  # (C, H, W) of the first input at which they were compared
    versions: dict[str, str]  # versions of the packages that wrote and ran the file
    seconds: float  # seconds that it took to write and to compare


class Exports(Record):
    """All exports of a run, by format."""

    FILE: ClassVar[str] = "export/exports.json"
    exports: dict[str, Exported] = {}  # one for each format  # noqa: RUF012


class Written(Record):
    """Names of the files that exports of the run put into each folder, kills included."""

    FILE: ClassVar[str] = "export/.written.json"
    names: dict[str, list[str]] = {}  # names of files, by folder  # noqa: RUF012


def read_exports(run: str | Path) -> dict[str, Exported]:
    """The records in a run directory, by format; empty if nothing was exported."""
    return (Exports.read_if_there(Path(run)) or Exports()).exports


def add_export(run: Path, record: Exported) -> None:
    """Add a record to those of other formats; it replaces an older one of its format."""
    with _lock(run):
        _write(run, read_exports(run) | {record.format: record})


def begin_writing(run: Path, form: str, folder: Path, names: Iterable[str]) -> None:
    """Before files change: remove the record of format `form`, and list `names` in `folder`.

    So a kill leaves no record that describes other files, and the next export knows which files
    it may replace.
    """
    place = within(folder, run)
    with _lock(run):
        known = _written_names(run)
        known[place] = sorted({*known.get(place, []), *names})
        Written(names=known).write(run)
        _write(run, {name: r for name, r in read_exports(run).items() if name != form})


def written(run: Path, folder: Path) -> set[str]:
    """Names of the files in `folder` that exports of this run wrote."""
    place = within(folder, run)
    names = set(_written_names(run).get(place, []))
    for record in read_exports(run).values():
        if record.folder == place:
            names |= {*record.files, PREPROCESS}
    return names


def within(folder: Path, run: Path) -> str:
    """The folder relative to the run directory if inside, else its absolute path."""
    inner, outer = folder.resolve(), run.resolve()
    return str(inner.relative_to(outer) if inner.is_relative_to(outer) else inner)


def _lock(run: Path) -> FileLock:
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    return FileLock(run / FOLDER / ".lock")


def _written_names(run: Path) -> dict[str, list[str]]:
    return (Written.read_if_there(run) or Written()).names


def _write(run: Path, records: dict[str, Exported]) -> None:
    if records:
        Exports(exports=dict(sorted(records.items()))).write(run)
    else:
        remove(Exports.path(run))
