"""A name for data: what it contains, not where it lies."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

_HASHED_AT_MOST = 20_000


def fingerprint_files(root: Path, files: Sequence[Path]) -> str:
    """Sha256 of names below `root`, sizes and (of up to 20,000 files) contents."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size} ".encode())
        if len(files) <= _HASHED_AT_MOST:  # beyond, reading everything twice costs too much
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
