"""The folder of exported files: only earlier exports of the same run may be replaced."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from updp.deploy.export.base import Format
from updp.deploy.export.manifest import FOLDER, PREPROCESS, written
from updp.errors import MachineError, UserError
from updp.io.files import in_the_way, not_writable
from updp.stages.context import STAGES

STEM = "model"  # name of every file, without the extension
LOCK = ".export.lock"


def check_place(run: Path, out: str | Path | None, formats: Iterable[Format]) -> Path:
    """The folder for the files of `formats`: `out`, by default `export` in the run directory.

    Raises UserError if it is a run directory or in a stage of this one, or if a file is in the
    way, and MachineError if it is not writable.
    """
    folder = run / FOLDER if out is None else Path(out)
    if problem := in_the_way(folder):
        raise UserError(f"--out '{folder}': {problem}, give a folder")
    stages = [run.resolve() / name for name in (*STAGES, "picks")]
    if (folder / "run.json").exists() or any(folder.resolve().is_relative_to(p) for p in stages):
        raise UserError(
            f"--out '{folder}' belongs to a run, whose files have such names: give another folder"
        )
    if blocked := not_writable(folder):
        raise MachineError(f"'{blocked}' may not be written to: give another folder with --out")
    for form in formats:
        check_names(run, folder, form)
    return folder


def check_names(run: Path, folder: Path, form: Format, own: Iterable[str] = ()) -> None:
    """Raise UserError if a file of this format would replace one that no export wrote.

    `own` are names of files that this export wrote without a record in the run.
    """
    ours = written(run, folder).union(own)
    for file in (*form.files(folder / f"{STEM}{form.suffix}"), folder / PREPROCESS):
        if file.name not in ours and os.path.lexists(file):
            raise UserError(
                f"'{file}' is there, and not from an earlier export of '{run}': move it away, or "
                "give another folder with --out"
            )


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Context with a temporary folder inside `folder`; other exports wait until it is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        # Only the holder of the lock has such a folder, so others were left by a kill.
        for stale in folder.glob(".export.*.tmp"):
            shutil.rmtree(stale)
        stage = folder / f".export.{os.getpid()}.tmp"
        stage.mkdir()
        try:
            yield stage
        finally:
            shutil.rmtree(stage)
