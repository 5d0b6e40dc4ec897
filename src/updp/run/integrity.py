"""Check that a run directory's files are those its stages wrote, and name the repair command."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from updp.errors import DamagedError, UserError, explain, unreadable
from updp.plan import Plan
from updp.run.records import Done, Result, RunRecord, StoredFile
from updp.stages.context import MODEL, STAGES
from updp.training.checkpoint import CHECKPOINT

# Copies at the top of the run directory, with the stage that each comes from.
PUBLISHED = {Plan.FILE: "search", MODEL: "merge", Result.FILE: "merge"}
# Files of a stage that no later stage reads: a run continues without them.
_LOGS = (".jsonl", ".svg")
_NOT_SEALED = (Done.FILE, CHECKPOINT)  # the mark itself, and a file removed at the end of the stage


def seal(folder: Path) -> Done:
    """The mark of a finished stage, with length and checksum of each file in its folder."""
    files = {
        file.name: _describe(file)
        for file in sorted(folder.iterdir())
        if not file.name.startswith(".") and file.name not in _NOT_SEALED
    }
    return Done(files=files)


def faults_of_stage(folder: Path, *, logs: bool = True) -> Iterator[DamagedError]:
    """Yield the faults in the files of a finished stage; with `logs` also in its logs.

    Stages finished by earlier versions of updp have no checksums.
    """
    done = Done.read_file(folder / Done.FILE)
    if not (folder / "key.json").exists():
        yield DamagedError(folder / "key.json", "is missing")
    for name, stored in (done.files or {}).items():
        path = folder / Path(name).name  # a name from a file must not lead out of the folder
        if (logs or path.suffix not in _LOGS) and (fault := _compare(path, stored)):
            yield fault


def require_files(run: Path, *names: str) -> None:
    """Raise UserError if one of these files of a finished run is missing."""
    for name in names:
        if not (run / name).exists():
            raise UserError(
                f"'{run}' holds no finished run: there is no {name}; `updp prune` makes it"
            )


def check_published(run: Path, *names: str) -> None:
    """Check published files against the stages that they come from, if these exist.

    Raises UserError if a file differs from what its stage wrote.
    """
    with explained(run):
        for name in names:
            folder = run / PUBLISHED[name]
            known = (Done.read_file(folder / Done.FILE).files or {}) if _is_done(folder) else {}
            if name in known and (fault := _compare(run / name, known[name])):
                raise fault


def check_stages(run: Path, *stages: str, logs: bool = True) -> None:
    """Check the files of these stages, if finished. Raises UserError."""
    with explained(run):
        for folder in (run / name for name in stages):
            for fault in faults_of_stage(folder, logs=logs) if _is_done(folder) else ():
                raise fault


@contextmanager
def explained(run: Path | None = None) -> Iterator[None]:
    """Context (or decorator) that turns damaged files and system errors into helpful UserErrors.

    By default the run is the one that contains the damaged file.
    """
    try:
        yield
    except DamagedError as error:
        raise advised(error, run) from error
    except BrokenPipeError:  # raised when the reader of the output has closed it
        raise
    except OSError as error:
        raise explain(error) from error


def advised(error: DamagedError, run: Path | None = None) -> UserError:
    """The error with a command that restores the file; by default for the run that contains it."""
    inside = (folder for folder in error.path.parents if RunRecord.path(folder).exists())
    run = run or next(inside, None)
    return error if run is None else UserError(f"{error}: {remedy(run, error.path)}")


START_OVER = "start over by the whole `updp prune` command with --fresh added"


def remedy(run: Path, file: Path) -> str:
    """The command that restores a damaged file of a run directory."""
    if not file.is_relative_to(run):
        return "give another, or write it anew"
    top = file.relative_to(run).parts[0]
    if top in PUBLISHED:
        return "`updp merge` copies it from its stage again"
    if top in STAGES:
        return f"`updp {command_of(top)} --fresh` makes that stage anew"
    if top in (RunRecord.FILE, "recipe.yaml"):
        return f"copy the run directory again, or {START_OVER}"
    return "remove it, and let its command write it again"


def command_of(stage: str) -> str:
    """The command that restarts a run from a stage."""
    # No command runs the stage `sites` alone. That of stage 1 does, and keeps the run's recipe.
    return "supernet" if stage == "sites" else stage


def _is_done(folder: Path) -> bool:
    return (folder / Done.FILE).exists()


def _compare(path: Path, stored: StoredFile) -> DamagedError | None:
    try:
        if not path.exists():
            return DamagedError(path, "is missing")
        if not path.is_file():
            return DamagedError(path, "is no file")
        if (size := path.stat().st_size) != stored.bytes:
            return DamagedError(path, f"has {size:,} bytes, and was written with {stored.bytes:,}")
        if _describe(path) != stored:
            return DamagedError(path, "has changed since it was written (another checksum)")
    except OSError as error:
        raise unreadable(path, error) from error
    return None


def _describe(path: Path) -> StoredFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredFile(bytes=file.tell(), sha256=digest)
