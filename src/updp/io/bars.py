"""Progress bars on a terminal or in a notebook, else plain lines; all show the time left."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from updp.io.notebook import CellOutput
from updp.io.progress import Pace, duration

_LINE_SECONDS = 20  # seconds between two lines without a terminal


class Bars:
    """`Progress` on a console: a bar for the current work, finished bars above it.

    >>> with updp.Bars() as bars:
    ...     pruned = updp.prune(model, "digits", recipe, out="runs/mine", progress=bars)

    The console is standard error unless another is given. On a terminal, bars are drawn only inside
    the `with`; without it, or without a terminal, a line is printed now and then. In a notebook the
    cell has one output that is overwritten, with or without the `with`.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._console = console
        self._bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Times(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._cell = CellOutput() if console.is_jupyter else None
        self._task: TaskID | None = None
        self._name, self._pace, self._told = "", Pace(0), 0.0

    def __enter__(self) -> Bars:
        if self._cell is not None:
            # This may be another cell than last time; finished bars stay in the old one.
            self._cell, self._task = CellOutput(), None
            for task in self._bars.task_ids:
                self._bars.remove_task(task)
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()
        self._show(now=True)

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Start a bar of `total` steps; a bar of 0 steps is not shown."""
        if self._task is not None:
            # Work may end before its last step; its bar must then stop.
            self._bars.stop_task(self._task)
        self._name, self._pace, self._told = name, Pace(total, done), time.monotonic()
        self._task = None
        if not total:
            return
        self._task = self._bars.add_task(
            name, total=total, completed=done, note="", pace=self._pace
        )
        if self._prints_lines:
            self.say(f"{name}: {done}/{total}" if done else f"{name}: {total}")
        self._show(now=True)

    def advance(self, note: str = "") -> None:
        """Count one step."""
        self._pace.step()
        if self._task is not None:
            self._bars.update(self._task, advance=1, note=note)
        ended = self._pace.done == self._pace.total
        late = time.monotonic() - self._told > _LINE_SECONDS or ended
        if self._prints_lines and late:
            parts = [
                f"{self._name}: {self._pace.done}/{self._pace.total}",
                note,
                _times(self._pace),
            ]
            self.say(", ".join(part for part in parts if part))
            self._told = time.monotonic()
        self._show(now=ended)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        if self._cell is None:
            self._bars.console.print(text, highlight=False, markup=False)
        else:
            self._cell.add_line(text)
            self._show(now=True)

    @property
    def _prints_lines(self) -> bool:
        return self._cell is None and not self._bars.live.is_started

    def _show(self, now: bool) -> None:
        if self._cell is not None:
            self._cell.show(self._bars.get_renderable(), now)


class _Times(ProgressColumn):
    """A column with the elapsed time and the time left.

    rich estimates from the steps of the last 30 seconds, but a single step may take longer here.
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
