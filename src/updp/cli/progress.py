"""Progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

_QUIET_SECONDS = 20  # between lines where there is no terminal


class Bars:
    """One bar for the work under way; finished ones stay above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name, self._total, self._done, self._told = "", 0, 0, 0.0

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """A piece of work begins or goes on."""
        self._name, self._total, self._done, self._told = name, total, done, time.monotonic()
        self._task = self._bars.add_task(name, total=total, completed=done, note="")
        if not self._console.is_terminal:
            self._console.print(f"{name}: {done}/{total}" if done else f"{name}: {total}")

    def advance(self, note: str = "") -> None:
        """One step more."""
        self._done += 1
        if self._task is not None:
            self._bars.update(self._task, advance=1, note=note)
        late = time.monotonic() - self._told > _QUIET_SECONDS or self._done == self._total
        if not self._console.is_terminal and late:
            self._console.print(f"{self._name}: {self._done}/{self._total} {note}")
            self._told = time.monotonic()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._bars.console.print(text, highlight=False)
