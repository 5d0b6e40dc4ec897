"""Diagnosis of a run directory: which files are whole or broken; loads and writes nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from updp.errors import UserError
from updp.recipe import Recipe
from updp.run.integrity import PUBLISHED, check_published, command_of, faults_of_stage
from updp.run.records import Done, RunRecord
from updp.stages.context import STAGES


@dataclass(frozen=True)
class Finding:
    """A stage or a file of a run: `whole`, `unfinished`, `missing` or `broken`, with reasons."""

    where: str
    state: str
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """All findings of a run, and the commands that repair what is broken."""

    findings: tuple[Finding, ...]
    commands: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is broken; a run may be unfinished."""
        return all(found.state != "broken" for found in self.findings)


def examine(run: str | Path) -> Diagnosis:
    """Check all files of a run directory that updp knows.

    Raises UserError if there is no run in the folder.
    """
    path = Path(run)
    if not RunRecord.path(path).is_file():
        raise UserError(f"'{path}' holds no run: there is no run.json")
    stages = {name: _stage(path / name) for name in STAGES}
    files = [*_described(path), *stages.values(), *(_published(path, n) for n in PUBLISHED)]
    states = [found.state for found in stages.values()]
    broken = next((n for n, found in stages.items() if found.state == "broken"), None)
    commands: list[str] = []
    if files[0].state == "broken":  # without run.json nothing can continue
        commands.append("updp prune --fresh")
    elif broken is not None:
        commands.append(f"updp {command_of(broken)} --fresh")
    ended = all(found.state == "whole" for found in files)
    if not ended and commands != ["updp prune --fresh"] and states != ["missing"] * len(STAGES):
        commands.append("updp prune")
    return Diagnosis(tuple(files), tuple(commands))


def _described(path: Path) -> Iterator[Finding]:
    """Check the two files that describe the run."""
    for name, read in (
        ("run.json", lambda: RunRecord.read(path)),
        ("recipe.yaml", lambda: Recipe.of_run(path)),
    ):
        try:
            read()
            yield Finding(name, "whole")
        except UserError as error:
            yield Finding(name, "broken", (str(error),))


def _stage(folder: Path) -> Finding:
    if not folder.exists():
        return Finding(folder.name, "missing")
    if not (folder / Done.FILE).exists():
        return Finding(folder.name, "unfinished")
    try:
        faults = tuple(str(fault) for fault in faults_of_stage(folder))
    except UserError as error:
        faults = (str(error),)
    return Finding(folder.name, "broken" if faults else "whole", faults)


def _published(path: Path, name: str) -> Finding:
    if not (path / name).exists():
        return Finding(name, "missing")
    try:
        check_published(path, name)
        return Finding(name, "whole")
    except UserError as error:
        return Finding(name, "broken", (str(error),))
