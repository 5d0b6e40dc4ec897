"""Ctrl-C and SIGTERM: work stops where it can go on from.

Only the command line handles signals; in Python they stay the caller's.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = 2.0  # seconds in which further signals are those of a launcher, which passes them on


class Stopped(BaseException):
    """A signal asks the process to end; `stage` is that of the run, `detail` what of it is kept."""

    def __init__(self, number: int, detail: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.detail, self.stage = number, detail, ""

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, as shells report them."""
        return 128 + self.number


class _Signals:
    """Handler of signals: which came, and whether it waits for a step to end."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.number, self.first, self.waits = 0, 0.0, False


_signals = _Signals()


@contextmanager
def handled() -> Iterator[None]:
    """Raise `Stopped` for SIGINT and SIGTERM, at once or `after_steps`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def arrived(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a worker that reads images, which the main process ends
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
    """Let the first signal wait, for the end of a step to ask for it; a second one does not."""
    _signals.waits = True
    try:
        yield
    finally:
        _signals.waits = False
    if _signals.number:
        raise Stopped(_signals.number)


def requested() -> int:
    """The number of the signal that waits, or 0."""
    return _signals.number
