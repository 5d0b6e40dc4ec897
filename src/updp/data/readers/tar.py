"""Tar shards in the layout of webdataset: `KEY.jpg` beside `KEY.cls` or `KEY.json`.

`KEY.cls` has the label as text, `KEY.json` an object with `label` or `cls`; labels may also be
missing for all images. Opening reads headers and labels, and keeps 12 bytes per image in memory.
"""

import json
import mmap
import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from updp.data.images import NO_LABEL
from updp.data.order import BUFFER, Groups
from updp.data.readers.encoded import EncodedSplit, Numbering, check_all_labelled, check_labels
from updp.data.readers.folder import EXTENSIONS
from updp.data.source import printable
from updp.errors import UserError, reason

_BLOCK = 512  # block size of tar, in bytes
_SHOWN = 40  # maximum bytes shown of a label that is no number
_RUN = 64  # number of consecutive images that are compared between splits
_PART = 256  # number of consecutive images in a group for shuffling


class TarIndex:
    """Images of one shard: offset, size in bytes, and label of each."""

    def __init__(self) -> None:
        self.offsets, self.sizes, self.labels = array("q"), array("i"), array("q")


class TarImages:
    """Encoded images of several uncompressed tar files, read directly from the files."""

    def __init__(self, files: Sequence[Path], indices: Sequence[TarIndex]) -> None:
        self.files, self.indices = files, indices
        self._numbering = Numbering([len(index.offsets) for index in indices])

    def read(self, index: int) -> bytes:
        """The encoded image."""
        number, row = self._numbering.locate(index)
        shard = self.indices[number]
        try:
            with self.files[number].open("rb") as file:
                file.seek(shard.offsets[row])
                return file.read(shard.sizes[row])
        except OSError as error:
            raise UserError(f"{self.where(index)} cannot be read: {error.strerror}") from error

    def starts(self) -> NDArray[np.int64]:
        """Index of the first image of each group for shuffling."""
        parts = [
            np.arange(first, first + len(index.offsets), _PART)
            for first, index in zip(self._numbering.starts[:-1], self.indices, strict=True)
        ]
        return np.concatenate(parts)

    def where(self, index: int) -> str:
        """Description of an image: `image 3 of 'train-0.tar' (at byte 4608)`."""
        number, row = self._numbering.locate(index)
        name = printable(self.files[number].name)
        return f"image {row} of '{name}' (at byte {self.indices[number].offsets[row]})"


def read_tar(root: Path, files: Sequence[Path]) -> EncodedSplit:
    """Read the headers of one split's files; labels are indices of the model's outputs."""
    indices = [_read_index(file) for file in files]
    labels = [label for index in indices for label in index.labels]
    if not labels:
        raise UserError(f"'{files[0]}' holds no images: updp reads KEY.jpg beside KEY.cls")
    check_all_labelled(labels, root)
    paths = [path.relative_to(root).as_posix() for path in files]
    images = TarImages(files, indices)
    return EncodedSplit(
        images, labels, root, paths, run=_RUN, groups=Groups(images.starts(), BUFFER // _PART)
    )


def _read_index(file: Path) -> TarIndex:
    """Find the images of a shard and their labels.

    Raises UserError if the file is broken, or if only some images have labels.
    """
    index = TarIndex()
    key, label = "", NO_LABEL
    images: dict[str, tuple[int, int]] = {}  # images of the current sample, by suffix
    unlabelled = ""  # first sample without a label

    def close() -> None:
        """Add the current sample to the index, if it has an image."""
        nonlocal unlabelled
        if images:
            if label == NO_LABEL:
                unlabelled = unlabelled or key
            offset, size = _the_image(images, key, file)
            index.offsets.append(offset)
            index.sizes.append(size)
            index.labels.append(label)

    try:
        with (
            file.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            for name, start, size in _members(data, file):
                folder, slash, base = name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if f"{folder}{slash}{stem}" != key:  # the files of a sample are adjacent
                    close()
                    key, images, label = f"{folder}{slash}{stem}", {}, NO_LABEL
                if suffix == "cls":
                    label = _whole_number(data[start : start + size], name, file)
                    check_labels([label], (), file)
                elif suffix == "json":
                    label = _label_of(data[start : start + size], label, file)
                elif f".{suffix.rpartition('.')[2].lower()}" in EXTENSIONS:
                    images[suffix] = (start, size)
            close()
    except UserError:
        raise
    except (OSError, ValueError, OverflowError, RecursionError, tarfile.TarError) as error:
        raise UserError(f"'{file}' is not a readable tar file: {reason(error)}") from error
    if unlabelled and max(index.labels) != NO_LABEL:
        raise UserError(
            f"'{file}' has an image '{printable(unlabelled)}' without a label and others with one: "
            'updp reads KEY.cls with a whole number, or KEY.json with {"label": 3}'
        )
    return index


def _the_image(images: Mapping[str, tuple[int, int]], key: str, file: Path) -> tuple[int, int]:
    """Offset and size of a sample's image: `KEY.jpg`, not `KEY.seg.png` beside it.

    Raises UserError if there are several.
    """
    whole = {suffix: place for suffix, place in images.items() if "." not in suffix} or images
    if len(whole) > 1:
        one, other = (printable(f"{key}.{suffix}") for suffix in list(whole)[:2])
        raise UserError(
            f"'{file}' has two images of one sample, '{one}' and '{other}': leave in it the one "
            "that the model is given"
        )
    return next(iter(whole.values()))


def _whole_number(text: bytes, member: str, file: Path) -> int:
    try:
        return int(text)
    except ValueError as error:
        shown = printable(text[:_SHOWN].decode(errors="replace").strip())
        raise UserError(
            f"'{printable(member)}' of '{file}' holds '{shown}': names of classes are not read, "
            "so give the class as a whole number, the index of the model's output"
        ) from error


def _label_of(text: bytes, label: int, file: Path) -> int:
    about = json.loads(text)
    if not isinstance(about, dict):
        return label
    for name in ("label", "cls"):
        if isinstance(about.get(name), int):
            check_labels([about[name]], (), file)
            return int(about[name])
    return label


def _members(data: mmap.mmap, file: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each regular file in a tar file.

    Usual headers are read here, because `tarfile` takes 20 times as long, a minute for ImageNet;
    files with other headers are read by `tarfile`.
    """
    found = _plain_members(data)
    if found is not None:
        yield from found
        return
    with tarfile.open(file, "r:") as archive:
        for member in archive:
            if member.isfile():
                yield member.name, member.offset_data, member.size


def _plain_members(data: mmap.mmap) -> list[tuple[str, int, int]] | None:
    """Fast path of `_members` for plain POSIX ustar headers; None if there are others."""
    found, position, end = list[tuple[str, int, int]](), 0, len(data)
    while position + _BLOCK <= end:
        header = data[position : position + _BLOCK]
        if not header[0]:  # the end of the archive
            return found
        kind, digits, prefix = header[156:157], header[124:135], header[345:500]
        posix = header[257:263] == b"ustar\0"
        if kind not in (b"0", b"5", b"x") or not (posix or prefix[0] == 0) or digits[0] >= 0x80:
            return None
        start, size = position + _BLOCK, int(digits.rstrip(b"\0 "), 8)
        if start + size > end:
            raise tarfile.ReadError(f"it ends within the member at byte {position}")
        if kind == b"x":  # extended fields of the next header; times among them are ignored
            fields = data[start : start + size]
            if any(f" {name}=".encode() in fields for name in ("path", "size", "GNU.sparse.major")):
                return None
        elif kind == b"0":
            name = header[:100].partition(b"\0")[0]
            if prefix[0]:
                name = prefix.partition(b"\0")[0] + b"/" + name
            found.append((name.decode(errors="backslashreplace"), start, size))
        position = start + (size + _BLOCK - 1) // _BLOCK * _BLOCK
    raise tarfile.ReadError("it has no end")
