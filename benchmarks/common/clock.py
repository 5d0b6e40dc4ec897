"""A time limit for a benchmark: the same command then continues."""

from __future__ import annotations

import time


class TimeUp(Exception):
    """The time limit was reached. What was finished is kept."""


class Clock:
    """Progress for `updp` that prints at most every 30 seconds and enforces a time limit.

    Its methods raise TimeUp once the minutes are over; training then continues from its last
    checkpoint, which is seconds old.
    """

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.name, self.total, self.done, self.printed = "", 0, 0, 0.0

    def check(self) -> None:
        """Raise TimeUp once the minutes are over."""
        if time.monotonic() > self.end:
            raise TimeUp("the minutes are over: the same command continues")

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """See `updp.io.progress.Progress`."""
        self.name, self.total, self.done = name, total, done
        self.check()

    def advance(self, note: str = "") -> None:
        """See `updp.io.progress.Progress`."""
        self.done += 1
        if time.monotonic() > self.printed + 30:
            self.printed = time.monotonic()
            print(f"  {self.name} {self.done}/{self.total} {note}", flush=True)
        self.check()

    def say(self, text: str) -> None:
        """See `updp.io.progress.Progress`."""
        print(f"  {text}", flush=True)
