"""Progress of long work: the interface for reports, and the estimate of the time left."""

import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Receiver of progress reports from stages."""

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Start a piece of work of `total` steps, `done` of them by an earlier, killed run."""

    def advance(self, note: str = "") -> None:
        """Count one step; `note` is a text about it, such as its latest figure."""

    def say(self, text: str) -> None:
        """Show a permanent line."""


class Silent:
    """Progress that is not shown."""

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Do nothing."""

    def advance(self, note: str = "") -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""


class Pace:
    """Elapsed and remaining seconds, from the mean time of this process's steps.

    The time of the `done` steps of an earlier, killed process is not known.
    """

    def __init__(
        self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self._clock = total, done, clock
        self._here = 0  # number of steps in this process
        self._start = self._last = clock()

    def step(self) -> None:
        """Count one step."""
        self._last = self._clock()
        self.done += 1
        self._here += 1

    @property
    def elapsed(self) -> float:
        """Seconds from the start in this process until now, or until the last step."""
        return (self._last if self.done >= self.total else self._clock()) - self._start

    @property
    def left(self) -> float | None:
        """Remaining seconds (decreasing during a step); None before the first step."""
        if self.done >= self.total:
            return 0.0
        if not self._here:
            return None
        mean = (self._last - self._start) / self._here
        since = self._clock() - self._last
        return (self.total - self.done) * mean - min(since, mean)


def duration(seconds: float) -> str:
    """Format seconds: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `1 d 3 h`."""
    if seconds < 0.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, small, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {name}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
