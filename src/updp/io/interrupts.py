"""Ctrl-C and SIGTERM: stop work at a place from which it can continue.

Only the command line handles signals; in Python that is left to the caller.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = 2.0  # seconds in which further signals are repeats passed on by a launcher


class Stopped(BaseException):
    """A signal asks the process to end; `stage` is the run's stage, `detail` says what is saved."""

    def __init__(self, number: int, detail: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.detail, self.stage = number, detail, ""

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, as shells report them."""
        return 128 + self.number


class _Signals:
    """State of the signal handler: the received signal, and whether it waits for a step to end."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.number, self.first, self.waits = 0, 0.0, False


_signals = _Signals()


@contextmanager
def handled() -> Iterator[None]:
    """Context that raises `Stopped` for SIGINT and SIGTERM, at once or `after_steps`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def arrived(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a worker that reads images; the main process ends it
            return
        now = time.monotonic()
        if _signals.number and now - _signals.first < _AGAIN:
            return
        waits = _signals.waits and not _signals.number
        _signals.number, _signals.first = number, now
        if not waits:
            raise Stopped(number)

    before = {number: signal.signal(number, arrived) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signals.reset()


@contextmanager
def after_steps() -> Iterator[None]:
    """Context in which a first signal waits until a step asks for it; a second one does not."""
    _signals.waits = True
    try:
        yield
    finally:
        _signals.waits = False
    if _signals.number:
        raise Stopped(_signals.number)


def requested() -> int:
    """Number of the waiting signal, or 0."""
    return _signals.number
