"""Data sets: two splits, their classes, and a fingerprint of the contents."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from updp import errors
from updp.blocks.nested import Samples
from updp.data.images import NO_LABEL, Images, by
from updp.errors import UserError, reason

_HASHED_FILES = 20_000  # maximum number of files to hash: reading more of them twice takes too long
_HASHED_BYTES = 1024**3  # above this size only both ends of each file are hashed
_END = 64 * 1024  # bytes hashed at each end of a file


@dataclass
class Source:
    """A data set with images of `image_size` (C, H, W).

    Args:
        train, test: the splits.
        classes: names; a label is a position among them.
        fingerprint: stable across runs and copies of the data.
        image_size: (C, H, W), or the shape of a sample; empty if a sample is not a single tensor.
        indexed: labels are indices of the model's outputs, whether all of them occur or not; else
            they are positions among classes that are matched to the model's by name.
        batch_size, workers: settings of the user's training loader, if any.
        example: a few inputs of the model, if random images cannot replace them.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    fingerprint: str
    image_size: tuple[int, ...]
    indexed: bool = False
    batch_size: int | None = None
    workers: int | None = None
    example: Samples | None = None

    @property
    def labelled(self) -> bool:
        """Whether training images have labels."""
        return self.train.labelled

    @property
    def has_images(self) -> bool:
        """Whether a sample is an image (C, H, W), which random pixels can replace."""
        return self.example is None and len(self.image_size) == 3

    @property
    def form(self) -> str:
        """The shape of a sample in words, such as `3x32x32`."""
        return by(self.image_size) or "no single tensor"

    @cached_property
    def normalised(self) -> bool:
        """Whether samples are other than 8-bit pixels, and so are not normalised by updp."""
        first = self.train[0][0]
        return not isinstance(first, Tensor) or first.dtype != torch.uint8

    def __post_init__(self) -> None:
        if self.train.size != self.test.size:
            raise UserError(
                f"training images are {by(self.train.size)} and test images {by(self.test.size)}: "
                "both must agree (or pass an input size to resize to)"
            )


def without_labels(source: Source) -> Source:
    """The source for a task whose labels are not classes: it has no class labels."""
    for images in (source.train, source.test):
        images.targets = [NO_LABEL] * len(images)
    return replace(source, classes=(), indexed=False)


def fingerprint_files(root: Path, files: Sequence[str]) -> str:
    """Sha256 of the names (relative to `root`), sizes and contents of files.

    Above 1 GiB only both ends of each file are read, above 20,000 files no contents.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        ordered = sorted(files, key=lambda name: name.split("/"))
        sizes = [(root / name).stat().st_size for name in ordered]
        whole = sum(sizes) <= _HASHED_BYTES
        for name, size in zip(ordered, sizes, strict=True):
            digest.update(os.fsencode(f"{name} {size} "))
            if len(files) <= _HASHED_FILES:
                with (root / name).open("rb") as file:
                    if whole:
                        digest.update(hashlib.file_digest(file, "sha256").digest())
                        continue
                    digest.update(file.read(_END))
                    file.seek(max(0, size - _END))
                    digest.update(file.read(_END))
    except OSError as error:
        raise UserError(f"a file of data '{root}' cannot be read: {reason(error)}") from error
    return digest.hexdigest()


def printable(path: str | Path) -> str:
    """A path as one line that is safe for terminals and files; invalid UTF-8 becomes `\\xff`."""
    return errors.printable(os.fsencode(path).decode("utf-8", "backslashreplace"))
