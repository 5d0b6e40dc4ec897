"""The figures of a run as curves in TensorBoard, as they come.

`figures.jsonl` is what counts. A stage that goes on draws its curves anew, from the rows that it
keeps: so a kill loses none of them, and what is done twice is not drawn twice.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from updp.errors import UserError, needs_extra

Stage = Literal["supernet", "search", "refined", "subnet", "merge"]


class Board:
    """Where the curves of a run go; without a folder, nowhere."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Raises UserError: TensorBoard is not installed, or `folder` cannot be one.

        So for the folder of each stage: a training does not end for want of one.
        """
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        for place in (self.folder, *(self.folder / stage for stage in get_args(Stage))):
            there = next(p for p in (place, *place.absolute().parents) if os.path.lexists(p))
            if not there.is_dir():
                raise UserError(f"--tensorboard '{folder}': '{there}' is a file, give a folder")
            if not os.access(there, os.W_OK | os.X_OK):
                raise UserError(f"--tensorboard '{folder}': '{there}' may not be written to")
        try:
            _writer_class()
        except ImportError as error:
            raise needs_extra(f"--tensorboard '{folder}'", "tensorboard", "tensorboard") from error

    def curves(self, stage: Stage) -> Curves:
        """The curves of one stage, in a folder of their own: what they forget is theirs alone."""
        return Curves(None if self.folder is None else self.folder / stage, stage)

    def under(self, *names: str) -> Board:
        """The board of a run within this run."""
        return Board(None if self.folder is None else self.folder.joinpath(*names))


class Curves:
    """One stage's figures, each a scalar named `stage/figure`; files appear with the first row."""

    def __init__(self, folder: Path | None, stage: str) -> None:
        self.folder, self.stage = folder, stage
        self._writer: Any = None
        self._anew = False

    def restart(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """Forget what was drawn before, by whichever process; draw these rows."""
        self.close()
        self._anew = True
        for row in rows:
            self._write(row)
        self._flush()

    def add(self, row: Mapping[str, Any]) -> None:
        """Draw a row: its numbers, at its `step`. It is on the disk when this returns."""
        self._write(row)
        self._flush()

    def close(self) -> None:
        """Let the files go."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, row: Mapping[str, Any]) -> None:
        if self.folder is None:
            return
        if self._writer is None:
            purge = 0 if self._anew else None  # the first step that is no longer true
            self._writer, self._anew = _writer_class()(str(self.folder), purge_step=purge), False
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{self.stage}/{name}", value, row["step"])

    def _flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()


def _writer_class() -> Any:
    """SummaryWriter. Raises ImportError."""
    with warnings.catch_warnings(action="ignore"):  # what protobuf says of itself
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter
