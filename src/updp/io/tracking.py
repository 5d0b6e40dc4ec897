"""Curves of a run's figures: in TensorBoard, or in any tracker that `accelerate` supports.

`figures.jsonl` is the master copy. A resumed stage redraws its curves from the rows that it keeps,
so that no row is lost by a kill, and steps done twice are not drawn twice. TensorBoard hides what
was drawn before; other trackers cannot, and get a new, complete run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from updp.errors import MachineError, UserError, needs_extra
from updp.io.files import in_the_way, not_writable

LOGS = "logs"  # folder for trackers that write files
Stage = Literal["supernet", "search", "refined", "subnet", "merge"]


class Board:
    """Target of a run's curves: a TensorBoard `folder`, a tracker called `log`, both or neither."""

    def __init__(self, folder: str | Path | None = None, log: str | None = None) -> None:
        """Check that the folders of all stages are writable, before hours of training.

        Raises:
            UserError: they are not, or TensorBoard, accelerate or the tracker is not installed.
        """
        self.folder = None if folder is None else Path(folder)
        self.log, self._names = log, ["updp"]
        if log is not None:
            _tracker_class(log)
        if self.folder is None:
            return
        for place in (self.folder, *(self.folder / stage for stage in get_args(Stage))):
            if blocked := in_the_way(place):
                raise UserError(f"--tensorboard '{folder}': {blocked}, give a folder")
            if known := not_writable(place):
                raise MachineError(f"--tensorboard '{folder}': '{known}' may not be written to")
        try:
            _writer_class()
        except ImportError as error:
            raise needs_extra(f"--tensorboard '{folder}'", "tensorboard", "tensorboard") from error

    def curves(self, stage: Stage) -> Curves:
        """Curves of one stage, in a separate folder, so that `restart` removes only these."""
        folder = None if self.folder is None else self.folder / stage
        return Curves(folder, stage, self.log, "-".join((*self._names, stage)))

    def under(self, *names: str) -> Board:
        """The board for a run inside of this run."""
        other = Board(None if self.folder is None else self.folder.joinpath(*names))
        other.log, other._names = self.log, [*self._names, *names]
        return other


class Curves:
    """Scalars of one stage, named `stage/figure`; files appear with the first row.

    A tracker named `log` stores them as its run `run`.
    """

    def __init__(
        self, folder: Path | None, stage: str, log: str | None = None, run: str = ""
    ) -> None:
        self.folder, self.stage, self._log, self._run = folder, stage, log, run
        self._writer: Any = None
        self._tracker: Any = None
        self._anew = False

    def restart(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """Replace everything drawn before, by any process, by these rows."""
        self.close()
        self._anew = True
        self._draw(rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Draw the numbers of a row at its `step`, and flush them to the disk."""
        self._draw([row])

    def close(self) -> None:
        """Close the files, and the tracker's run."""
        if self._writer is not None:
            self._writer.close()
        if self._tracker is not None:
            self._tracker.finish()
        self._writer = self._tracker = None

    def _draw(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            values = {
                f"{self.stage}/{name}": value
                for name, value in row.items()
                if name != "step" and isinstance(value, int | float)
            }
            if self.folder is not None:
                if self._writer is None:
                    purge = 0 if self._anew else None  # hides earlier rows from this step on
                    self._writer = _writer_class()(str(self.folder), purge_step=purge)
                for name, value in values.items():
                    self._writer.add_scalar(name, value, row["step"])
            if self._log is not None:
                if self._tracker is None:
                    self._tracker = _start_tracker(self._log, self._run, self._anew)
                self._tracker.log(values, step=row["step"])
            self._anew = False
        if self._writer is not None:
            self._writer.flush()


def _start_tracker(name: str, run: str, anew: bool) -> Any:
    """A tracker of accelerate's with a run of its own."""
    from accelerate import PartialState

    PartialState()  # without it accelerate's own logger fails
    tracker_class = _tracker_class(name)
    options: dict[str, Any] = {}
    if tracker_class.requires_logging_directory:
        options["logging_dir"] = LOGS
    if name == "tensorboard" and anew:
        options["purge_step"] = 0
    tracker = tracker_class(run, **options)
    if hasattr(tracker, "start"):  # in older versions the constructor starts it
        tracker.start()
    return tracker


def _tracker_class(name: str) -> Any:
    """The class of accelerate's tracker with this name.

    Raises:
        UserError: accelerate or the tracker is not installed, or there is no such tracker.
    """
    try:
        from accelerate import tracking
    except ImportError as error:
        raise needs_extra(f"--log '{name}'", "accelerate", "trackers") from error
    known = {str(kind): found for kind, found in tracking.LOGGER_TYPE_TO_CLASS.items()}
    if name not in known:
        close = get_close_matches(name, known) or sorted(known)
        raise UserError(f"--log '{name}': accelerate has no such tracker (but {', '.join(close)})")
    if name not in map(str, tracking.get_available_trackers()):
        raise UserError(f"--log '{name}' needs {name}: install its package")
    return known[name]


def _writer_class() -> Any:
    """Import `SummaryWriter`. Raises ImportError."""
    with warnings.catch_warnings(action="ignore"):  # protobuf's deprecations
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter
