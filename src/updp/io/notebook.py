"""Progress in a notebook: one output of the cell, written over as work goes on."""

from __future__ import annotations

import time
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType

_SECONDS = 0.5  # between two versions of the output; each one is a message to the browser
_WIDTH = 100  # characters; a cell of a usual window is a little wider


class CellOutput:
    """An output of the running cell, whose text is replaced.

    rich's own bars need ipywidgets in a notebook, and its lines are an output each. Text that
    replaces itself shows in every notebook, and is kept as text when the notebook is saved.
    """

    def __init__(self) -> None:
        self._console = Console(
            file=StringIO(), width=_WIDTH, force_jupyter=False, force_terminal=False
        )
        self._lines: list[str] = []
        self._handle: Any = None
        self._shown = 0.0

    def add_line(self, text: str) -> None:
        """Add a line that stays above what is shown."""
        self._lines.append(text)

    def show(self, below: RenderableType, now: bool = False) -> None:
        """Show the lines and what is `below` them; unless `now`, only if the last time is past."""
        if not now and time.monotonic() - self._shown < _SECONDS:
            return
        with self._console.capture() as captured:
            self._console.print(below)
        drawn = [line.rstrip() for line in captured.get().splitlines()]
        text = "\n".join([*self._lines, *(line for line in drawn if line)])
        if self._handle is None:
            from IPython.display import display

            self._handle = display({"text/plain": text}, raw=True, display_id=True)
        else:
            self._handle.update({"text/plain": text}, raw=True)
        self._shown = time.monotonic()
