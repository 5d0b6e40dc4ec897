"""The folder that exports go to: nothing in it is replaced but earlier exports of the run."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from updp.deploy.export.base import Format
from updp.deploy.export.manifest import FOLDER, PREPROCESS, written
from updp.errors import UserError
from updp.stages.context import STAGES

STEM = "model"  # of every file


def check_place(run: Path, out: str | Path | None, formats: Iterable[Format]) -> Path:
    """The folder for the files of `formats`: `out`, by default `export` in the run directory.

    Raises UserError: it is a run directory or in a stage of this one, or a file is in the way.
    """
    folder = run / FOLDER if out is None else Path(out)
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise UserError(f"--out '{folder}': '{there}' is a file, give a folder")
    inside = [run.resolve() / name for name in (*STAGES, "picks")]
    if (folder / "run.json").exists() or any(folder.resolve().is_relative_to(p) for p in inside):
        raise UserError(
            f"--out '{folder}' belongs to a run, whose files have such names: give another folder"
        )
    for one in formats:
        check_names(run, folder, one)
    return folder


def check_names(run: Path, folder: Path, one: Format) -> None:
    """Raises UserError where a file of this format would replace one that no export wrote."""
    ours = written(run, folder)
    for file in (*one.files(folder / f"{STEM}{one.suffix}"), folder / PREPROCESS):
        if file.name not in ours and os.path.lexists(file):
            raise UserError(
                f"'{file}' is there, and not from an earlier export of '{run}': move it away, or "
                "give another folder with --out"
            )


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A folder beside the final names, gone at the end; one export at a time has one.

    Others wait, so what is there before was left by a kill and is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".export.lock"):
        for stale in folder.glob(".export.*.tmp"):
            shutil.rmtree(stale)
        stage = folder / f".export.{os.getpid()}.tmp"
        stage.mkdir()
        try:
            yield stage
        finally:
            shutil.rmtree(stage)
