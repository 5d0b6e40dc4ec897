"""How long work tells what it does; the command line draws it, tests stay silent."""

import time
from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Where stages report to."""

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """A piece of work of `total` steps begins or goes on, `done` of them behind it."""

    def advance(self, note: str = "") -> None:
        """One step more; `note` is its latest figure."""

    def say(self, text: str) -> None:
        """A line that stays."""


class Silent:
    """Says nothing."""

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Nothing."""

    def advance(self, note: str = "") -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class Pace:
    """The time that is left, by the mean of the steps since this piece of work was begun here.

    Those `done` before, by a process that was killed, took time that nobody knows any more.
    """

    def __init__(
        self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self._clock = total, done, clock
        self._here = 0  # steps of this process
        self._start = self._last = clock()

    def step(self) -> None:
        """One step more."""
        self._last = self._clock()
        self.done += 1
        self._here += 1

    @property
    def elapsed(self) -> float:
        """Seconds since it was begun here; they stop with the last step."""
        return (self._last if self.done >= self.total else self._clock()) - self._start

    @property
    def left(self) -> float | None:
        """Seconds to go; None before the first step. The step under way counts as it passes."""
        if self.done >= self.total:
            return 0.0
        if not self._here:
            return None
        mean = (self._last - self._start) / self._here
        since = self._clock() - self._last
        return (self.total - self.done) * mean - min(since, mean)


def duration(seconds: float) -> str:
    """For people: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `1 d 3 h`."""
    if seconds < 0.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, small, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {name}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
