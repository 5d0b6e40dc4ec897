"""Atomic file writes: a temporary name, fsync, rename.

Of several processes only the first writes.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from updp.io import processes
from updp.io.tracking import Curves

TEMPORARY = ".*.tmp"  # what a kill may leave


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; missing folders are made."""
    if not processes.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
        replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace(temporary: Path, path: Path) -> None:
    """Rename a written file, on the same file system, durably."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)  # without it a crash may lose the new name


def remove(path: Path) -> None:
    """Remove a file durably, if it exists."""
    if path.exists():
        path.unlink()
        _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Any = None) -> None:
    """Write a safetensors file atomically; `notes` is plain data, kept as JSON in its header."""
    # Clones: safetensors refuses tensors that share memory.
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_bytes(path, save(plain, {"notes": json.dumps(notes)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read the tensors and notes of a file that `write_tensors` wrote."""
    with safe_open(path, framework="pt") as file:
        notes = json.loads((file.metadata() or {}).get("notes", "null"))
        return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118


class Figures:
    """A log of figures, one JSON object a line; `curves` show the same rows."""

    def __init__(self, path: Path, curves: Curves | None = None) -> None:
        self.path, self.curves = path, curves

    def add(self, **row: Any) -> None:
        """Append a row."""
        if not processes.is_first():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.curves is not None:
            self.curves.add(row)

    def rows(self) -> list[dict[str, Any]]:
        """All complete rows; a kill may have cut the last one short."""
        rows = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the rows that are not `wanted`: a resumed run writes them again."""
        rows = [row for row in self.rows() if wanted(row)]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        if self.curves is not None:
            self.curves.restart(rows)
