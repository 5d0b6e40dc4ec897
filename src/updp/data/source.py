"""Data sets: two splits, their classes, and a fingerprint of the contents."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from updp.data.images import Images, by
from updp.data.resizing import Size
from updp.errors import UserError

_HASHED_AT_MOST = 20_000  # files; to read more of them twice takes too long


@dataclass
class Source:
    """A data set with images of `image_size` (C, H, W).

    `fingerprint` is stable across runs and copies of the data.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    fingerprint: str
    image_size: Size

    def __post_init__(self) -> None:
        if self.train.size != self.test.size:
            raise UserError(
                f"training images are {by(self.train.size)} and test images {by(self.test.size)}: "
                "both must agree (or pass an input size to resize to)"
            )


def fingerprint_files(root: Path, files: Sequence[Path]) -> str:
    """Sha256 of names below `root`, sizes and (of up to 20,000 files) contents."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size} ".encode())
        if len(files) <= _HASHED_AT_MOST:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
