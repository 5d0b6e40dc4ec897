"""Parquet files in the Hugging Face image layout.

Columns: `image`, struct(bytes, path), and `label`, an integer. Class names are in the schema
metadata, key `huggingface`. The encoded bytes are held in memory.
"""

import json
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from updp.data.images import load_images
from updp.data.resizing import InputSize
from updp.data.source import Source, fingerprint_files
from updp.errors import UserError, needs_extra, reason


@dataclass
class ParquetTable:
    """One file: `data` and `paths` are Arrow columns of encoded images and of their names."""

    file: Path
    data: Any
    paths: Any
    targets: list[int]
    names: tuple[str, ...]


class Rows:
    """Encoded images of several tables, numbered consecutively."""

    def __init__(self, tables: list[ParquetTable]) -> None:
        self.tables = tables
        self.starts = [0, *accumulate(len(table.targets) for table in tables)]

    def read(self, index: int) -> bytes:
        """The encoded image, empty where the row has none."""
        table, row = self._locate(index)
        return table.data[row].as_py() or b""

    def where(self, index: int) -> str:
        """`image '7.png' (row 7 of 'train.parquet')`."""
        table, row = self._locate(index)
        return f"image '{table.paths[row].as_py()}' (row {row} of '{table.file.name}')"

    def _locate(self, index: int) -> tuple[ParquetTable, int]:
        number = bisect_right(self.starts, index) - 1
        return self.tables[number], index - self.starts[number]


def open_parquet(root: Path, input_size: InputSize | None) -> Source:
    """Open `train*.parquet` and `test*.parquet`, or else `val*.parquet` (`validation*`)."""
    train_files = sorted(root.glob("train*.parquet"))
    test_files = sorted(root.glob("test*.parquet")) or sorted(root.glob("val*.parquet"))
    for wanted, files in (("train", train_files), ("test", test_files)):
        if not files:
            raise UserError(f"data '{root}' has no {wanted}*.parquet: updp needs both splits")
    train, train_targets = _split(train_files)
    test, test_targets = _split(test_files)
    classes = train.tables[0].names or tuple(
        str(label) for label in range(max(train_targets + test_targets) + 1)
    )
    for table in train.tables + test.tables:
        bad = next((t for t in table.targets if not 0 <= t < len(classes)), None)
        if bad is not None:
            raise UserError(
                f"'{table.file}' has label {bad}: labels must be 0 to {len(classes) - 1}"
            )
    images = load_images(train, train_targets, input_size)
    return Source(
        train=images,
        test=load_images(test, test_targets, input_size),
        classes=classes,
        fingerprint=fingerprint_files(root, train_files + test_files),
        image_size=images.size,
    )


def _split(files: list[Path]) -> tuple[Rows, list[int]]:
    tables = [_read(file) for file in files]
    targets = [target for table in tables for target in table.targets]
    if not targets:
        raise UserError(f"'{files[0]}' has no rows")
    return Rows(tables), targets


def _read(file: Path) -> ParquetTable:
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
    except ImportError as error:
        raise needs_extra(f"'{file}'", "pyarrow", "parquet") from error
    try:
        opened = pq.ParquetFile(file)
        schema = opened.schema_arrow
        table = opened.read(columns=["image", "label"])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"'{file}' is not a readable Parquet file: {reason(error)}") from error
    try:
        image, label = table["image"], table["label"]
        data, paths = pc.struct_field(image, "bytes"), pc.struct_field(image, "path")
        if label.null_count or not pa.types.is_integer(label.type):
            raise TypeError("labels")
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        columns = ", ".join(f"{field.name} {field.type}" for field in schema)
        raise UserError(
            f"'{file}' has the columns {columns}: "
            "updp reads image struct<bytes: binary, path: string> and label int64, none null"
        ) from error
    return ParquetTable(file, data, paths, label.to_pylist(), _class_names(schema.metadata or {}))


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    try:
        return tuple(json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return ()  # not written by `datasets`, or labels are plain integers
