"""Progress in a notebook: a single output of the cell, overwritten as work continues."""

from __future__ import annotations

import time
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType

_SECONDS = 0.5  # seconds between two updates; each is a message to the browser
_WIDTH = 100  # characters; a cell in a usual window is a little wider


class CellOutput:
    """An output of the running cell whose text can be replaced.

    In a notebook rich's own bars need ipywidgets, and each of its lines is an output. Text that
    replaces itself works in every notebook, and is saved with it.
    """

    def __init__(self) -> None:
        self._console = Console(
            file=StringIO(), width=_WIDTH, force_jupyter=False, force_terminal=False
        )
        self._lines: list[str] = []
        self._handle: Any = None
        self._shown = 0.0

    def add_line(self, text: str) -> None:
        """Add a line that stays above the bars."""
        self._lines.append(text)

    def show(self, below: RenderableType, now: bool = False) -> None:
        """Show the lines and `below` under them; unless `now`, not too soon after the last call."""
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
