"""Read and check the files of a run directory, without model and data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from updp.deploy.bench.bench_record import Bench
from updp.deploy.export.manifest import Exports
from updp.deploy.int8.int8_record import Int8
from updp.errors import DamagedError, UserError
from updp.io.figures import Figures
from updp.plan import Plan
from updp.recipe import Recipe
from updp.run.integrity import PUBLISHED, check_published, check_stages, require_files
from updp.run.records import Result, RunRecord
from updp.search import SearchResult, Survey
from updp.stages.checks import Check, Checks
from updp.stages.context import STAGES
from updp.stages.sites import SitesKey
from updp.supernet import FitRecord, FitRow

_NEEDED = (RunRecord.FILE, "recipe.yaml", Plan.FILE, Result.FILE)


@dataclass(frozen=True)
class ReportedRun:
    """All files of one run; optional ones may be None or empty."""

    path: Path
    name: str
    record: RunRecord
    key: SitesKey | None
    recipe: Recipe
    plan: Plan
    result: Result
    survey: Survey | None
    outcome: SearchResult | None
    training: dict[str, list[dict[str, float]]]  # rows of `figures.jsonl` by stage
    fits: tuple[FitRow, ...]
    checks: tuple[Check, ...]
    exports: Exports | None
    int8: Int8 | None
    bench: Bench | None


def load_runs(paths: Sequence[str | Path]) -> list[ReportedRun]:
    """Read finished runs; their names are those of their folders, or paths if two are equal.

    Raises UserError if a folder has no finished run, if a file is not what `updp` wrote, or if a
    run is given twice.
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
    require_files(path, *_NEEDED)
    check_published(path, *(name for name in PUBLISHED if (path / name).exists()))
    check_stages(path, *STAGES)
    figures = {s: _figures(path / s / "figures.jsonl") for s in ("supernet", "subnet")}
    fits, checks = FitRecord.read_if_there(path), Checks.read_if_there(path)
    return ReportedRun(
        path=path,
        name=name,
        record=RunRecord.read(path),
        key=SitesKey.read_if_there(path),
        recipe=Recipe.of_run(path),
        plan=Plan.read(path),
        result=Result.read(path),
        survey=Survey.read_if_there(path),
        outcome=SearchResult.read_if_there(path),
        training={stage: rows for stage, rows in figures.items() if rows},
        fits=fits.rows if fits else (),
        checks=checks.rows if checks else (),
        exports=Exports.read_if_there(path),
        int8=Int8.read_if_there(path),
        bench=Bench.read_if_there(path),
    )


def _figures(path: Path) -> list[dict[str, float]]:
    """The numbers in each row of `figures.jsonl`. Raises UserError on a wrong row."""
    rows = Figures(path).rows()
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("step"), int):
            raise DamagedError(path, f"is damaged in line {number}: there is no step")
    return [{k: float(v) for k, v in row.items() if isinstance(v, int | float)} for row in rows]
