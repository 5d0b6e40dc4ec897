"""Parquet files in the Hugging Face image layout.

Columns: `image`, struct(bytes, path), and `label`, an integer. Class names are in the schema
metadata, key `huggingface`. Opening reads the labels alone; images are read a row group at a time.
"""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from updp.data.images import Size
from updp.data.readers.encoded import (
    EncodedSplit,
    Numbering,
    check_labels,
    find_shards,
    make_source,
)
from updp.data.source import Source, printable
from updp.errors import UserError, needs_extra, reason

_CACHE_BYTES = 64 * 1024**2  # of row groups, for each split and each process that reads it
_RUN = 64  # images in a row that are compared, where splits are


class RowGroups:
    """Encoded images of several files, of which the row groups used last are kept in memory.

    Threads may share it, and worker processes get a copy with files and memory of their own.
    """

    def __init__(self, files: Sequence[Path], groups: Sequence[Sequence[int]]) -> None:
        """`groups` has the rows of each row group of each file."""
        self.files = files
        counts = [count for file in groups for count in file]
        self._numbering = Numbering(counts)
        self._first = [0, *accumulate(map(len, groups))]  # number of each file's first row group
        self._reset()

    def _reset(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._opened: dict[int, Any] = {}
        self._cache: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        kept = {"files", "_numbering", "_first"}
        return {name: value for name, value in vars(self).items() if name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def read(self, index: int) -> bytes:
        """The encoded image, empty where the row has none."""
        group, row = self._numbering.locate(index)
        return self._image(group, row)["bytes"] or b""

    def where(self, index: int) -> str:
        """`image '7.png' (row 7 of 'train.parquet')`."""
        group, row = self._numbering.locate(index)
        number = self._file_of(group)
        inside = index - self._numbering.starts[self._first[number]]
        path = self._image(group, row)["path"]
        return f"image '{path}' (row {inside} of '{printable(self.files[number].name)}')"

    def _image(self, group: int, row: int) -> dict[str, Any]:
        image: dict[str, Any] | None = self._read_group(group)[row].as_py()
        return image or {"bytes": None, "path": None}

    def _file_of(self, group: int) -> int:
        return int(np.searchsorted(self._first, group, side="right")) - 1

    def _read_group(self, group: int) -> Any:
        """The image column of a row group, an Arrow array."""
        if self._process != os.getpid():  # a forked worker must not share files and lock
            self._reset()
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
            number = self._file_of(group)
            try:
                if number not in self._opened:
                    self._opened.clear()  # as there may be thousands of files
                    self._opened[number] = _open(self.files[number])
                table = self._opened[number].read_row_group(
                    group - self._first[number], columns=["image"], use_threads=False
                )
            except (OSError, ValueError) as error:  # Arrow's own errors are among them
                raise UserError(
                    f"'{self.files[number]}' cannot be read any more: {reason(error)}"
                ) from error
            self._cache[group] = table["image"].combine_chunks()
            while (
                len(self._cache) > 1 and sum(x.nbytes for x in self._cache.values()) > _CACHE_BYTES
            ):
                self._cache.popitem(last=False)
            return self._cache[group]


def open_parquet(root: Path, input_size: Size | None) -> Source:
    """Open `train*.parquet` and `test*.parquet`, or else `val*.parquet` (`validation*`)."""
    train, test = (_split(root, files) for files in find_shards(root, "parquet"))
    names = train.names or None
    return make_source(root, train, test, names, input_size, run=_RUN)


def _split(root: Path, files: list[Path]) -> EncodedSplit:
    groups, labels, names = [], [], list[tuple[str, ...]]()
    for file in files:
        rows, targets, classes = _read_labels(file)
        check_labels(targets.tolist(), classes, file)
        groups.append(rows)
        labels.append(targets)
        names.append(classes)
    targets = np.concatenate(labels)
    if not len(targets):
        raise UserError(f"'{files[0]}' has no rows")
    paths = [path.relative_to(root).as_posix() for path in files]
    return EncodedSplit(RowGroups(files, groups), targets.tolist(), paths, names[0])


def _open(file: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise needs_extra(f"'{file}'", "pyarrow", "parquet") from error
    return pq.ParquetFile(file)


def _read_labels(file: Path) -> tuple[list[int], NDArray[np.int64], tuple[str, ...]]:
    """Rows of each row group, all labels, and the names of the classes where the file has them."""
    try:
        with _open(file) as opened:
            meta, schema = opened.metadata, opened.schema_arrow
            groups = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
            label = opened.read(columns=["label"]) if "label" in schema.names else None
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' is not a readable Parquet file: {reason(error)}") from error
    targets = None if label is None else as_labels(label["label"])
    if targets is None or not is_image(schema):
        columns = ", ".join(f"{field.name} {field.type}" for field in schema)
        raise UserError(
            f"'{file}' has the columns {columns}: "
            "updp reads image struct<bytes: binary, path: string> and label int64, none null"
        )
    return groups, targets, class_names(schema.metadata or {})


def as_labels(column: Any) -> NDArray[np.int64] | None:
    """An Arrow column of whole numbers, none of which is missing, else None."""
    from pyarrow import types

    if column.null_count or not types.is_integer(column.type):
        return None
    values: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    return values


def is_image(schema: Any) -> bool:
    """Whether the column `image` is a struct with bytes and path."""
    if "image" not in schema.names:
        return False
    kind = schema.field("image").type
    names = {kind.field(i).name for i in range(kind.num_fields)}
    return {"bytes", "path"} <= names


def class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    """The names in a schema's metadata; none where labels are plain integers."""
    try:
        return tuple(json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return ()  # not written by `datasets`, or labels are plain integers
