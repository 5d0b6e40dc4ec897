"""TensorBoard curves of a run's figures.

`figures.jsonl` is the master copy. A resumed stage draws its curves anew from the rows that it
keeps: so a kill loses none of them, and steps done twice are not drawn twice.
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
    """The folder of a run's curves; with None there are no curves."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Check that the folders of all stages can be written, before hours of training.

        Raises:
            UserError: they cannot, or TensorBoard is not installed.
        """
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        for place in (self.folder, *(self.folder / stage for stage in get_args(Stage))):
            known = next(p for p in (place, *place.absolute().parents) if os.path.lexists(p))
            if not known.is_dir():
                raise UserError(f"--tensorboard '{folder}': '{known}' is a file, give a folder")
            if not os.access(known, os.W_OK | os.X_OK):
                raise UserError(f"--tensorboard '{folder}': '{known}' may not be written to")
        try:
            _writer_class()
        except ImportError as error:
            raise needs_extra(f"--tensorboard '{folder}'", "tensorboard", "tensorboard") from error

    def curves(self, stage: Stage) -> Curves:
        """Curves of one stage, in a folder of their own, so that `restart` forgets only these."""
        return Curves(None if self.folder is None else self.folder / stage, stage)

    def under(self, *names: str) -> Board:
        """The board of a run inside this run."""
        return Board(None if self.folder is None else self.folder.joinpath(*names))


class Curves:
    """Scalars of one stage, named `stage/figure`; files appear with the first row."""

    def __init__(self, folder: Path | None, stage: str) -> None:
        self.folder, self.stage = folder, stage
        self._writer: Any = None
        self._anew = False

    def restart(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """Replace what any process drew before by these rows."""
        self.close()
        self._anew = True
        self._draw(rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Draw the numbers of a row at its `step`, and flush them to the disk."""
        self._draw([row])

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _draw(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows if self.folder is not None else ():
            if self._writer is None:
                purge = 0 if self._anew else None  # hides earlier rows from this step on
                writer = _writer_class()(str(self.folder), purge_step=purge)
                self._writer, self._anew = writer, False
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(f"{self.stage}/{name}", value, row["step"])
        if self._writer is not None:
            self._writer.flush()


def _writer_class() -> Any:
    """Import `SummaryWriter`. Raises ImportError."""
    with warnings.catch_warnings(action="ignore"):  # protobuf's deprecations
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter
