"""Freed memory that stays with the process: kept, where glibc would hand each large tensor back.

glibc maps every block of more than 32 MiB anew (`M_MMAP_THRESHOLD`, mallopt(3)), and the kernel
then fills each of its pages with zeros at the first touch. Networks with wide early feature maps
spend half of their time on a CPU in that.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Names and values of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_MIB = 2**20
_KEPT = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}
# The highest to which glibc raises its limits by itself, as it does once such blocks were freed.
_USUAL = {_M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: 32 * _MIB, _M_TRIM_THRESHOLD: 64 * _MIB}

_lock = threading.Lock()
_users = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep what is freed meanwhile for the next tensors; at the end it goes back to the system.

    It holds for the whole process, until the last of those that asked has ended. Where the C
    library is not glibc nothing changes.
    """
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _set(_KEPT)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _set(_USUAL)


def hand_back() -> None:
    """Give what is kept back to the system, before work on tensors of other sizes.

    It lies in pieces between what is in use, and serves no larger tensor: without this a process
    grows with each kind of work, to many times of what it uses.
    """
    if _users and (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _set(options: dict[int, int]) -> None:
    libc = _glibc()
    if libc is None:
        return
    for option, value in options.items():
        libc.mallopt(option, value)
    if options is _USUAL:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (TypeError, OSError):  # Windows
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
