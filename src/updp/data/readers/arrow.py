"""Data sets that Hugging Face `datasets` saved with `save_to_disk`: folders of Arrow files.

The files are mapped, so that an image costs memory only while it is read. `columns` describes their
contents.
"""

import json
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from updp.data.readers.columns import (
    Shard,
    arrow_errors,
    image_of,
    make_shard,
    read_shards,
)
from updp.data.readers.encoded import TESTS, EncodedSplit, Numbering, Splits
from updp.data.source import printable
from updp.errors import UserError, needs_extra, reason

_STATE = "state.json"  # in the folder of each split


class ArrowImages:
    """Encoded images of several mapped Arrow files; each worker process maps them again."""

    def __init__(self, files: Sequence[Path], shards: Sequence[Shard]) -> None:
        self.files, self._rows = files, Numbering([sum(shard.rows) for shard in shards])
        self._reset()

    def _reset(self) -> None:
        self._columns: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "_rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def read(self, index: int) -> bytes:
        """The encoded image; empty if the row has none."""
        number, row = self._rows.locate(index)
        return self._image(number, row)["bytes"] or b""

    def where(self, index: int) -> str:
        """Description of an image: `image '7.png' (row 7 of 'data-00000-of-00001.arrow')`."""
        number, row = self._rows.locate(index)
        name = printable(self.files[number].name)
        return f"image '{self._image(number, row)['path']}' (row {row} of '{name}')"

    def _image(self, number: int, row: int) -> dict[str, Any]:
        with self._lock:
            if number not in self._columns:
                self._columns[number] = _open(self.files[number]).read_all()["image"]
        return image_of(self._columns[number][row])


def is_saved(root: Path) -> bool:
    """Whether a folder is a data set saved to disk, with or without splits."""
    return (root / "dataset_dict.json").is_file() or (root / _STATE).is_file()


def read_arrow(root: Path) -> Splits:
    """The splits `train` and `test` (or `validation`, `valid`, `val`) of a saved data set.

    A data set saved without splits is a training split.
    """
    if (root / _STATE).is_file():
        return Splits(_split(root, ""), {})
    there = [name for name in ("train", *TESTS) if (root / name / _STATE).is_file()]
    if not there:
        raise UserError(
            f"'{root}' has none of the splits train, {', '.join(TESTS)}: rename one, or give the "
            "folder of one split"
        )
    tests = {name: partial(_split, root, name) for name in there if name != "train"}
    return Splits(_split(root, "train") if "train" in there else None, tests)


def _split(root: Path, name: str) -> EncodedSplit:
    state = root / name / _STATE
    try:
        about = json.loads(state.read_text())["_data_files"]
        files = [state.parent / file["filename"] for file in about]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{state}' is not as `datasets` writes it: {reason(error)}") from error
    return read_shards(root, files, _read_shard, ArrowImages)


def _read_shard(file: Path) -> Shard:
    try:
        table = _open(file).read_all()  # mapped, not read
    except UserError:
        raise
    except arrow_errors() as error:
        raise UserError(f"'{file}' is not a readable Arrow file: {reason(error)}") from error
    label = table["label"] if "label" in table.column_names else None
    return make_shard(file, [table.num_rows], table.schema, label)


def _open(file: Path) -> Any:
    try:
        import pyarrow as pa
        from pyarrow import ipc
    except ImportError as error:
        raise needs_extra(f"'{file}'", "pyarrow", "parquet") from error
    return ipc.open_stream(pa.memory_map(str(file)))
