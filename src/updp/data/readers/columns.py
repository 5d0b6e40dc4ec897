"""Columns of the Hugging Face image layout, in Parquet and in Arrow files.

`image` is a struct(bytes, path); `label` is an integer column, or missing in all files. The class
names are in the schema metadata under the key `huggingface`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from updp.data.images import NO_LABEL, Encoded
from updp.data.readers.encoded import EncodedSplit, check_all_labelled, check_labels
from updp.errors import UserError


def arrow_errors() -> tuple[type[Exception], ...]:
    """Exception types that Arrow raises for an unreadable file."""
    import pyarrow

    return OSError, ValueError, pyarrow.ArrowException


@dataclass
class Shard:
    """Index of a file: number of rows in its parts, labels, and class names."""

    rows: list[int]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    largest: int = 0  # bytes of the largest part, if known


def make_shard(file: Path, rows: list[int], schema: Any, label: Any) -> Shard:
    """Check a file's columns; `label` is its Arrow column, or None if images have no labels.

    Raises:
        UserError: there are other columns, or a label is out of range.
    """
    from pyarrow import types

    whole = label is None or (not label.null_count and types.is_integer(label.type))
    if not whole or not _is_image(schema):
        columns = ", ".join(f"{field.name} {field.type}" for field in schema)
        raise UserError(
            f"'{file}' has the columns {columns}: "
            "updp reads image struct<bytes: binary, path: string> and label int64, none null"
        )
    if label is None:
        return Shard(rows, np.full(sum(rows), NO_LABEL, np.int64), ())
    labels, names = label.to_numpy().astype(np.int64), _class_names(schema.metadata or {})
    check_labels(labels.tolist(), names, file)
    # A test split with secret labels has -1 for all of them.
    return Shard(rows, labels, names if (labels != NO_LABEL).any() else ())


def read_shards(
    root: Path,
    files: Sequence[Path],
    read: Callable[[Path], Shard],
    images: Callable[[Sequence[Path], Sequence[Shard]], Encoded],
) -> EncodedSplit:
    """Join the files of one split; `images` makes an object that reads them.

    Raises:
        UserError: there are no rows, or a label means different classes in different files.
    """
    shards = [read(file) for file in files]
    labels = [label for shard in shards for label in shard.labels.tolist()]
    if not labels:
        raise UserError(f"'{files[0] if files else root}' has no rows")
    check_all_labelled(labels, root)
    names = _names_of_all(files, shards)
    paths = [path.relative_to(root).as_posix() for path in files]
    return EncodedSplit(images(files, shards), labels, root, paths, names)


def _names_of_all(files: Sequence[Path], shards: Sequence[Shard]) -> tuple[str, ...]:
    """Class names of a split; each file must have the same names, or none."""
    named = [(file, shard.names) for file, shard in zip(files, shards, strict=True) if shard.names]
    if not named:
        return ()
    first, names = named[0]
    for file, others in named:
        for label, (own, name) in enumerate(zip_longest(others, names, fillvalue="")):
            if own != name:
                raise UserError(
                    f"label {label} is '{own}' in '{file}' and '{name}' in '{first}': the files of "
                    "a split must have the same classes in the same order"
                )
    return names


def image_of(value: Any) -> dict[str, Any]:
    """Bytes and path of an Arrow scalar; both None if the row is null.

    In a damaged file the path may be invalid text: unreadable parts are replaced.
    """
    if not value.is_valid:
        return {"bytes": None, "path": None}
    try:
        path = value["path"].as_py()
    except UnicodeDecodeError:
        path = value["path"].as_buffer().to_pybytes().decode(errors="replace")
    return {"bytes": value["bytes"].as_py(), "path": path}


def _is_image(schema: Any) -> bool:
    if "image" not in schema.names:
        return False
    kind = schema.field("image").type
    return {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()  # not written by `datasets`, or labels are plain integers
