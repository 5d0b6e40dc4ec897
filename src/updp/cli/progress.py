"""Progress bars on a terminal, plain lines elsewhere; both say the time left."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from updp.io.progress import Pace, duration

_QUIET_SECONDS = 20  # between lines where there is no terminal


class Bars:
    """One bar for the work under way; finished ones stay above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Times(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name, self._pace, self._told = "", Pace(0), 0.0

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """A piece of work begins or goes on."""
        if self._task is not None:
            self._bars.stop_task(self._task)  # which may have ended before its last step
        self._name, self._pace, self._told = name, Pace(total, done), time.monotonic()
        self._task = None
        if not total:  # no training, say
            return
        self._task = self._bars.add_task(
            name, total=total, completed=done, note="", pace=self._pace
        )
        if not self._console.is_terminal:
            self.say(f"{name}: {done}/{total}" if done else f"{name}: {total}")

    def advance(self, note: str = "") -> None:
        """One step more."""
        self._pace.step()
        if self._task is not None:
            self._bars.update(self._task, advance=1, note=note)
        ended = self._pace.done == self._pace.total
        late = time.monotonic() - self._told > _QUIET_SECONDS or ended
        if not self._console.is_terminal and late:
            parts = [f"{self._name}: {self._pace.done}/{self._pace.total}", note, self._times()]
            self.say(", ".join(part for part in parts if part))
            self._told = time.monotonic()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._bars.console.print(text, highlight=False, markup=False)

    def _times(self) -> str:
        return _times(self._pace)


class _Times(ProgressColumn):
    """Time so far and time left, the latter by steps of this process only.

    What rich would say is by the steps of the last 30 seconds, and a step may take longer.
    """

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        pace: Pace = task.fields["pace"]
        if task.stop_time is not None and not task.finished:
            return Text("")
        return Text(_times(pace))


def _times(pace: Pace) -> str:
    if pace.done >= pace.total:
        return f"took {duration(pace.elapsed)}"
    left = "" if pace.left is None else f", {duration(pace.left)} left"
    return f"{duration(pace.elapsed)}{left}"
