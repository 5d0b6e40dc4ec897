"""A run's files, read and checked: no model, no data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from updp.deploy.report.extras import records
from updp.deploy.report.records import About, CheckRow, FitRow, Survey
from updp.errors import UserError, reason
from updp.io.records import read_checked
from updp.plan import Plan
from updp.recipe import Recipe
from updp.run.result import Result
from updp.search.outcome import SearchResult

T = TypeVar("T")
NEEDED = ("run.json", "recipe.yaml", "plan.json", "result.json")


@dataclass(frozen=True)
class ReportedRun:
    """All that a report says of one run; what a run may lack is None or empty.

    `training` are the rows of `figures.jsonl` by stage, `extras` other commands' records by file.
    """

    path: Path
    name: str
    about: About
    recipe: Recipe
    plan: Plan
    result: Result
    survey: Survey | None
    outcome: SearchResult | None
    training: dict[str, list[dict[str, float]]]
    fits: list[FitRow]
    checks: list[CheckRow]
    extras: dict[str, Any]


def load_runs(paths: Sequence[str | Path]) -> list[ReportedRun]:
    """Read finished runs; their names are those of their folders, or the paths where these agree.

    Raises UserError: a folder holds no finished run, a file is not what `updp` wrote, or a run is
    given twice.
    """
    folders = [Path(path) for path in paths]
    for number, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise UserError(f"'{folder}' is given twice: name each run once")
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    return [_load(folder, name) for folder, name in zip(folders, names, strict=True)]


def _load(path: Path, name: str) -> ReportedRun:
    if not path.is_dir():
        raise UserError(f"'{path}' is no run directory: give the --out of `updp prune`")
    for file in NEEDED:
        if not (path / file).exists():
            raise UserError(
                f"'{path}' holds no finished run: there is no {file}; `updp prune` makes it"
            )
    figures = {s: _figures(path / s / "figures.jsonl") for s in ("supernet", "subnet")}
    return ReportedRun(
        path=path,
        name=name,
        about=read_checked(path / "run.json", About),
        recipe=Recipe.load(path / "recipe.yaml"),
        plan=read_checked(path / "plan.json", Plan),
        result=read_checked(path / "result.json", Result),
        survey=_optional(path / "sites" / "sites.json", Survey),
        outcome=_outcome(path / "search" / "front.json"),
        training={stage: rows for stage, rows in figures.items() if rows},
        fits=_optional(path / "subnet" / "fit.json", list[FitRow]) or [],
        checks=_optional(path / "merge" / "checks.json", list[CheckRow]) or [],
        extras={
            name: read_checked(path / name, kind)
            for name, kind in records().items()
            if (path / name).exists()
        },
    )


def _optional(path: Path, model: type[T]) -> T | None:
    return read_checked(path, model) if path.exists() else None


def _outcome(path: Path) -> SearchResult | None:
    outcome = _optional(path, SearchResult)
    if outcome is not None and not all(
        0 <= i < len(outcome.points) for i in (*outcome.front, outcome.chosen)
    ):
        raise UserError(f"'{path}' is not what updp writes: front: no such point")
    return outcome


def _figures(path: Path) -> list[dict[str, float]]:
    """The numbers of each whole row; a kill may have torn the last."""
    try:
        lines = path.read_text().splitlines() if path.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {reason(error)}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"'{path}', line {number}: {reason(error)}") from error
        if not (isinstance(row, dict) and isinstance(row.get("step"), int)):
            raise UserError(f"'{path}', line {number}: there is no step")
        rows.append({k: float(v) for k, v in row.items() if isinstance(v, int | float)})
    return rows
