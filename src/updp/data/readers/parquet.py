"""Parquet files in the Hugging Face image layout; `columns` describes the columns.

Opening reads only the labels; images are read one row group at a time.
"""

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from updp.data.order import BUFFER, Groups
from updp.data.readers.columns import (
    Shard,
    arrow_errors,
    image_of,
    make_shard,
    read_shards,
)
from updp.data.readers.encoded import EncodedSplit, Numbering
from updp.data.source import printable
from updp.errors import UserError, needs_extra, reason

_CACHE_BYTES = 256 * 1024**2  # memory for row groups, per split and reading process
_MOST_BYTES = 1024**3  # maximum bytes of the images in a row group
_ROWS = 1_000_000  # above this number, the file must be large enough for its rows
_RUN = 64  # number of consecutive images that are compared between splits


class RowGroups:
    """Encoded images of several files; the row groups used last are kept in memory.

    As many are kept as training shuffles at a time, if they fit into the cache, and at least one.
    Threads may share this object; worker processes get a copy with their own files and memory.
    """

    def __init__(self, files: Sequence[Path], shards: Sequence[Shard]) -> None:
        self.files = files
        self._rows = Numbering([count for shard in shards for count in shard.rows])
        self._groups = Numbering([len(shard.rows) for shard in shards])
        rows = max(count for shard in shards for count in shard.rows)
        largest = max(shard.largest for shard in shards)
        self._kept = max(1, min(_CACHE_BYTES // largest, math.ceil(BUFFER / rows)))
        self._reset()

    @property
    def groups(self) -> Groups:
        """The groups of rows, one per row group."""
        return Groups(np.asarray(self._rows.starts[:-1]), self._kept)

    def _reset(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._opened: dict[int, Any] = {}
        self._cache: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        kept = {"files", "_rows", "_groups", "_kept"}
        return {name: value for name, value in vars(self).items() if name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def read(self, index: int) -> bytes:
        """The encoded image; empty if the row has none."""
        group, row = self._rows.locate(index)
        return image_of(self._read_group(group)[row])["bytes"] or b""

    def where(self, index: int) -> str:
        """Description of an image: `image '7.png' (row 7 of 'train.parquet')`."""
        group, row = self._rows.locate(index)
        number, _ = self._groups.locate(group)
        path = image_of(self._read_group(group)[row])["path"]
        inside = index - self._rows.starts[self._groups.starts[number]]
        return f"image '{path}' (row {inside} of '{printable(self.files[number].name)}')"

    def _read_group(self, group: int) -> Any:
        """The image column of a row group, an Arrow array."""
        if self._process != os.getpid():  # a forked worker must not share files and lock
            self._reset()
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
            number, inside = self._groups.locate(group)
            try:
                if number not in self._opened:
                    self._opened.clear()  # there may be thousands of files
                    self._opened[number] = _open(self.files[number])
                column = _read_images(self._opened[number], inside, self.files[number])
            except UserError:
                raise
            except arrow_errors() as error:
                raise UserError(
                    f"'{self.files[number]}' cannot be read any more: {reason(error)}"
                ) from error
            self._cache[group] = column
            if len(self._cache) > self._kept:
                self._cache.popitem(last=False)
            return self._cache[group]


def read_parquet(root: Path, files: Sequence[Path]) -> EncodedSplit:
    """Read the labels of one split's files."""
    split = read_shards(root, files, _read_shard, RowGroups)
    assert isinstance(split.images, RowGroups)
    return replace(split, run=_RUN, groups=split.images.groups)


def _read_shard(file: Path) -> Shard:
    try:
        with _open(file) as opened:
            meta, schema = opened.metadata, opened.schema_arrow
            groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
            rows = [group.num_rows for group in groups]
            largest = max((group.total_byte_size for group in groups), default=0)
            if sum(rows) > max(_ROWS, file.stat().st_size):
                raise UserError(f"'{file}' says that it has {sum(rows)} rows, in fewer bytes")
            label = opened.read(columns=["label"])["label"] if "label" in schema.names else None
    except UserError:
        raise
    except arrow_errors() as error:
        raise UserError(f"'{file}' is not a readable Parquet file: {reason(error)}") from error
    return replace(make_shard(file, rows, schema, label), largest=largest)


def _read_images(opened: Any, group: int, file: Path) -> Any:
    """The image column of a row group, an Arrow array.

    Rows with equal values share storage, so a file of kilobytes may expand to gigabytes. Such a
    group is read in parts, and UserError is raised once it is too large.
    """
    about = opened.metadata.row_group(group)
    # No row is larger than the whole stored group.
    rows = max(1, min(about.num_rows, _MOST_BYTES // max(about.total_byte_size, 1)))
    parts, size = [], 0
    batches = opened.iter_batches(rows, row_groups=[group], columns=["image"], use_threads=False)
    for part in batches:
        size += part.nbytes
        if size > _MOST_BYTES:
            raise UserError(
                f"row group {group} of '{file}' has more than 1 GiB of images: write it with fewer "
                "rows in each row group"
            )
        parts.append(part.column("image"))
    import pyarrow

    return parts[0] if len(parts) == 1 else pyarrow.concat_arrays(parts)


def _open(file: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise needs_extra(f"'{file}'", "pyarrow", "parquet") from error
    return pq.ParquetFile(file)
