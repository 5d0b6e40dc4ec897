"""Progress of long work: the interface to report to, and the time that is left."""

import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Receiver of the progress that stages report."""

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Start a piece of work of `total` steps, `done` of which a killed run did before."""

    def advance(self, note: str = "") -> None:
        """Count one step; `note` is its latest figure."""

    def say(self, text: str) -> None:
        """Show a line that stays."""


class Silent:
    """Progress that is not shown."""

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Do nothing."""

    def advance(self, note: str = "") -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""


class Pace:
    """Elapsed and remaining seconds, by the mean time of the steps of this process.

    The time of the steps `done` before, by a process that was killed, is not known.
    """

    def __init__(
        self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self._clock = total, done, clock
        self._here = 0  # steps of this process
        self._start = self._last = clock()

    def step(self) -> None:
        """Count one step."""
        self._last = self._clock()
        self.done += 1
        self._here += 1

    @property
    def elapsed(self) -> float:
        """Seconds from the start in this process to now or the last step."""
        return (self._last if self.done >= self.total else self._clock()) - self._start

    @property
    def left(self) -> float | None:
        """Remaining seconds, None before the first step; they fall while a step is under way."""
        if self.done >= self.total:
            return 0.0
        if not self._here:
            return None
        mean = (self._last - self._start) / self._here
        since = self._clock() - self._last
        return (self.total - self.done) * mean - min(since, mean)


def duration(seconds: float) -> str:
    """Seconds as text: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `1 d 3 h`."""
    if seconds < 0.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, small, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {name}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
