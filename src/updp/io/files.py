"""Atomic file writes (a temporary name, fsync, rename), and readers of possibly damaged files.

Of several processes only the first writes. Writers raise OSError with the path of the target file;
readers raise UserError.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from updp.errors import DamagedError, is_out_of_memory, reason, unreadable
from updp.io import processes

TEMPORARY = ".*.tmp"  # files that a kill may leave behind
_LARGEST = 2**28  # maximum bytes of a JSON file; the device /dev/zero has no end


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; creates missing folders."""
    if not processes.is_first():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
            replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context that adds the target file to system errors; a full disk names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)).match(TEMPORARY):
            error.filename = str(path)
        error.filename2 = None
        raise


def nearest_existing(path: Path) -> Path:
    """The path itself if it exists (perhaps as a broken link), else the nearest existing parent."""
    return next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))


def in_the_way(folder: Path) -> str:
    """Describe the file or broken link that blocks `folder`; empty if nothing does."""
    known = nearest_existing(folder)
    if known.is_dir():
        return ""
    return f"'{known}' is a {'file' if known.exists() else 'link to nothing'}"


def not_writable(folder: Path) -> Path | None:
    """The folder whose permissions prevent writing into `folder`; None if nothing does.

    It is a parent folder if `folder` must still be created.
    """
    known = nearest_existing(folder)
    return None if os.access(known, os.W_OK | os.X_OK) else known


def replace(temporary: Path, path: Path) -> None:
    """Rename a finished file durably, within one file system."""
    with naming(path):
        with temporary.open("rb+") as file:  # Windows syncs only files opened for writing
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)  # without it a crash may lose the new name


def remove(path: Path) -> None:
    """Remove a file durably, if it exists."""
    if path.exists():
        path.unlink()
        _sync(path.parent)


def discard(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists; of a linked folder only the contents.

    A folder is renamed first, so that a kill leaves all of it or nothing under its name.
    """
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    folder = path.resolve()  # a link to a larger disk stays a link
    trash = _trash(folder)
    if trash.exists():
        shutil.rmtree(trash)
    folder.rename(trash)
    _sync(folder.parent)
    if path.is_symlink():
        folder.mkdir()
    shutil.rmtree(trash)


def sweep(folder: Path) -> None:
    """Remove files that a kill left in a folder, and the rest of a removal that it stopped."""
    for unfinished in (*folder.glob(TEMPORARY), _trash(folder.resolve())):
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink(missing_ok=True)


def _trash(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.removed.tmp")


def _sync(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; invalid UTF-8, as in odd file names, is escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Raises UserError if it is missing, too large, invalid, or has a duplicate key."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST >> 20} MiB")
        return json.loads(data, object_pairs_hook=_once_each)
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Object from pairs. Raises ValueError for duplicate keys: Python would use the last one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{twice}' is given twice")
    return found


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Any = None) -> None:
    """Write a safetensors file atomically; `notes` is plain data, stored as JSON in its header.

    The header also has a checksum, because checkpoints are read before their stage is sealed.
    """
    # Cloned, because safetensors refuses tensors that share memory.
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    # A single entry, because safetensors writes several in random order.
    about = json.dumps({"notes": notes, "crc32": _checksum(plain)})
    write_bytes(path, save(plain, {"updp": about}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read the tensors and notes of a file that `write_tensors` wrote. Raises UserError."""
    try:
        with path.open("rb"):  # its errors say more than those of safetensors
            pass
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            about = json.loads(header.get("updp", "{}"))
            if not isinstance(about, dict):
                raise ValueError("its header is not updp's")
            # Earlier versions wrote only the notes.
            notes = about.get("notes", json.loads(header.get("notes", "null")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    if about.get("crc32", known := _checksum(tensors)) != known:
        raise DamagedError(path, "has changed since it was written (another checksum)")
    return tensors, notes


def copy_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy loaded tensors into those with the same names, without broadcasting or casting.

    Raises:
        ValueError: names, shapes or dtypes differ; then nothing is copied.
    """
    if source.keys() != target.keys():
        raise ValueError(f"weights differ in {sorted(source.keys() ^ target.keys())[:3]}")
    for name, own in target.items():
        given = source[name]
        if given.shape != own.shape or given.dtype != own.dtype:
            raise ValueError(
                f"{name} is {given.dtype} {tuple(given.shape)}, not {own.dtype} {tuple(own.shape)}"
            )
    with torch.no_grad():
        for name, own in target.items():
            own.copy_(source[name])


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of names, shapes, types and values; takes a tenth of SHA-256's time."""
    total = 0
    for name, tensor in sorted(tensors.items()):
        about = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        values = tensor.reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(values.data, zlib.crc32(about.encode(), total))
    return f"{total:08x}"


@contextmanager
def content_of(path: Path) -> Iterator[None]:
    """Context that reports a file of ours as damaged if its content is not what the reader expects.

    Files are written whole, so a kill cannot cause this, but a disk or somebody else can. The
    context should contain only code that interprets the content. Raises DamagedError.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        if isinstance(error, DamagedError) or is_out_of_memory(error):
            raise
        raise DamagedError(path, f"is not what updp wrote ({reason(error)})") from error
