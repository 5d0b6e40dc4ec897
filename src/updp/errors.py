"""Errors that users see, each as one line."""

import errno
import os
from pathlib import Path

# Faults of disk, permissions and system limits: advice by error number.
_MACHINE = {
    errno.ENOSPC: "make room, and the same command goes on",
    errno.EDQUOT: "make room, and the same command goes on",
    errno.EFBIG: "this file system takes no file so large: give a folder on another",
    errno.EROFS: "give a folder that can be written to",
    errno.EACCES: "change its permissions, or give another place",
    errno.EPERM: "change its permissions, or give another place",
    errno.EIO: "the disk fails: copy what can be read to another",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "other programs have too many files open",
    errno.ENOMEM: "free some memory",
    errno.ETXTBSY: "another program uses it",
    errno.EBUSY: "another program uses it",
    errno.ESTALE: "the network folder has changed: mount it again",
}
_IN_THE_WAY = "move away what is there, or give another place"
_ASKED = {
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.ELOOP: _IN_THE_WAY,
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "give a shorter one",
}


class UserError(ValueError):
    """Something that the user can put right: one line on the command line, exit code 2.

    >>> try:
    ...     updp.Budget.parse("blocks=many")
    ... except updp.UserError as error:
    ...     print(error)
    budget 'blocks=many' is not understood: write blocks=9 (a whole number), or latency, ...
    """


class MachineError(UserError):
    """A fault of the machine, such as a full disk or a missing permission; exit code 3.

    >>> isinstance(updp.errors.MachineError("runs/mine: No space left on device"), updp.UserError)
    True
    """


class DamagedError(UserError):
    """A file is not what updp wrote; in a run directory some stage makes it anew.

    >>> error = updp.errors.DamagedError("runs/mine/plan.json", "is empty")
    >>> str(error)
    "'runs/mine/plan.json' is empty"
    """

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(f"'{path}' {why}")
        self.path = Path(path)


class MergeError(RuntimeError):
    """A merged model does not compute what was trained; nothing is written.

    >>> try:
    ...     pruned = updp.prune(model, "digits", recipe, out="runs/mine")
    ... except updp.MergeError as error:  # a bug in updp, or weights with infinities
    ...     print(error)
    """


class ExportError(RuntimeError):
    """An exported file does not compute what the merged model does; it is removed.

    >>> try:
    ...     records = updp.export("runs/mine", "safetensors")
    ... except updp.ExportError as error:  # the message names the format and the largest error
    ...     print(error)
    """


class ProcessLostError(RuntimeError):
    """Another process of the run has ended before its work was done."""


def needs_extra(what: str, package: str | None, extra: str) -> UserError:
    """The error for a missing optional package, with the command that installs it."""
    return UserError(f"{what} needs {package}: pip install 'updp[{extra}]'")


def reason(error: BaseException) -> str:
    """Return a foreign error's type and first line, as `KeyError: 'x'`, to quote in a UserError."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def root_reason(error: BaseException) -> str:
    """Return the `reason` of the first error in a chain: exporters wrap the original error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason(error)


def is_machines(error: BaseException) -> bool:
    """Whether an error is a fault of the machine, and not of a file's content or name."""
    return isinstance(error, OSError) and error.errno in _MACHINE


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or its accelerator is exhausted."""
    # The CPU's allocator of PyTorch raises a plain RuntimeError.
    names = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(name in str(error) for name in names)


def explain(error: OSError) -> UserError:
    """Return an operating system's error as a UserError: the path, the reason, what to do."""
    place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    if error.errno is None or error.strerror is None:  # raised by a library
        return UserError(f"{place}{reason(error)}")
    kind = MachineError if is_machines(error) else UserError
    advice = _MACHINE.get(error.errno) or _ASKED.get(error.errno)
    return kind(f"{place}{error.strerror}" + (f"; {advice}" if advice else ""))


def unreadable(path: Path, error: BaseException) -> UserError:
    """Return the error for an unreadable file of ours: the machine's fault, or a damaged file."""
    if isinstance(error, OSError) and is_machines(error):
        return explain(error)
    return DamagedError(path, f"cannot be read: {reason(error)}")


def printable(text: str, keep: str = "") -> str:
    """Return text for a terminal, with control characters written as `\\x1b` except in `keep`.

    Names from files and users' input may contain control characters, which a terminal would obey.
    """
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
