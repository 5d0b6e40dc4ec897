"""The seam of all faults of a disk: each change to files below a folder, one after the other."""

import builtins
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch


class Operation(NamedTuple):
    """A change of the disk; continued runs meet the same ones, as their files have the same bytes.

    `kind` is open, write, close, fsync, rename, mkdir or remove; `name` is relative to the folder,
    without the numbers of processes; `content` is a hash of what is written.
    """

    kind: str
    name: str
    content: str = ""


Before = Callable[[Operation], None]


@contextmanager
def watched(root: Path, before: Before) -> Iterator[None]:
    """Call `before` each change of what is below `root`: it may raise an error or kill the process.

    A write is called for when the first half of it is on the disk.
    """
    root = root.absolute()

    def tell(kind: str, path: str | bytes | os.PathLike[Any], content: bytes = b"") -> None:
        place = Path(os.path.abspath(os.fsdecode(path)))
        if place.is_relative_to(root):
            name = without_pids(str(place.relative_to(root)))
            digest = hashlib.sha256(content).hexdigest()[:16] if content else ""
            try:
                before(Operation(kind, name, digest))
            except OSError as error:
                if kind in ("open", "rename", "mkdir", "remove"):  # what the system knows by name
                    error.filename = str(place)
                raise

    def content_of(path: Path) -> bytes:
        return path.read_bytes() if path.is_file() else b""

    def place_of(path: Any, dir_fd: int | None) -> Any:
        return path if dir_fd is None else f"{descriptor_path(dir_fd)}/{os.fsdecode(path)}"

    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "mkdir", "open")}
    real |= {name: getattr(os, name) for name in ("unlink", "remove", "rmdir")}
    real_open = io.open

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return real_open(file, mode, *args, **options)
        tell("open", file)
        return _File(real_open(file, mode, *args, **options), lambda k, c: tell(k, file, c))

    def opened_low(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            tell("open", path)
        return real["open"](path, flags, *args, **options)

    def synced(descriptor: int) -> None:
        path = descriptor_path(descriptor)
        listed = without_pids(" ".join(sorted(os.listdir(path)))) if path.is_dir() else ""
        tell("fsync", path, content_of(path) or listed.encode())
        real["fsync"](descriptor)

    def renaming(name: str) -> Callable[..., None]:
        def renamed(source: Any, target: Any, **options: Any) -> None:
            tell("rename", target, content_of(Path(source)) or b"folder")
            real[name](source, target, **options)

        return renamed

    def changing(kind: str, name: str) -> Callable[..., None]:
        def changed(path: Any, *args: Any, dir_fd: int | None = None, **options: Any) -> None:
            tell(kind, place_of(path, dir_fd))
            real[name](path, *args, dir_fd=dir_fd, **options)

        return changed

    with (
        patch.object(io, "open", opened),
        patch.object(builtins, "open", opened),
        patch.multiple(
            os,
            fsync=synced,
            rename=renaming("rename"),
            replace=renaming("replace"),
            open=opened_low,
            mkdir=changing("mkdir", "mkdir"),
            **{name: changing("remove", name) for name in ("unlink", "remove", "rmdir")},
        ),
    ):
        yield


def without_pids(name: str) -> str:
    """The names of temporary files without the numbers of processes."""
    return re.sub(r"\.\d+\.tmp", ".tmp", name)


def descriptor_path(descriptor: int) -> Path:
    """Where an open file or folder is."""
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


class _File:
    """A file open for writing that says what is done to it."""

    def __init__(self, file: Any, tell: Callable[[str, bytes], None]) -> None:
        self._file, self._tell = file, tell

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._tell("write", data.encode() if isinstance(data, str) else bytes(data))
        return half + int(self._file.write(data[half:]))

    def close(self) -> None:
        try:
            if not self._file.closed:
                self._tell("close", b"")
        finally:
            self._file.close()

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
