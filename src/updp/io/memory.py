"""Keep freed memory in the process, where glibc would return each large tensor to the system.

glibc maps every block of more than 32 MiB anew (`M_MMAP_THRESHOLD`, mallopt(3)), and the kernel
then zeroes each of its pages at the first touch. Networks with wide early feature maps spend half
of their CPU time on that.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Names and values from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_MIB = 2**20
_KEPT = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}
# The maximum of the limits that glibc raises by itself once such blocks were freed.
_USUAL = {_M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: 32 * _MIB, _M_TRIM_THRESHOLD: 64 * _MIB}

_lock = threading.Lock()
_users = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Context that keeps freed memory for the next tensors; at the end the system gets it back.

    It applies to the whole process, until the last user's context has ended. If the C library is
    not glibc, nothing changes.
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
    """Return kept memory to the system, before work on tensors of other sizes.

    Kept memory is fragmented and cannot hold larger tensors: without this a process grows with each
    kind of work, to many times of what it uses.
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
