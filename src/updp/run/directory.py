"""The run directory: what each stage was made from, and what it left.

run.json            model, data, device, versions, command
recipe.yaml         the recipe
sites/ supernet/ search/ subnet/ merge/
    key.json        what the stage was made from
    figures.jsonl   its figures, one JSON object a line
    ...             its weights, study or checks; `done.json` when it has ended
plan.json  model.safetensors  result.json
export/ bench/      what `updp export`, `quantize` and `bench` made of them, with their records
picks/              run directories for other points of the search's front

What the JSON files hold is in `records`.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from updp.errors import UserError
from updp.io.files import TEMPORARY, read_json, write_bytes, write_text
from updp.plan import Plan
from updp.recipe import Recipe
from updp.run.records import Done, Result, RunRecord
from updp.run.result import MODEL, RESULT
from updp.search import SearchResult
from updp.stages.context import STAGES, StageKey

PLAN = "plan.json"
RESULTS = (PLAN, MODEL, RESULT)
SHIPPED = ("export", "bench", "report.html", "report.md")  # what was made of the results


class RunDirectory:
    """A folder that belongs to one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.path / name

    def is_done(self, name: str) -> bool:
        """Whether the stage has ended."""
        return (self.stage(name) / "done.json").exists()

    def done(self, name: str) -> None:
        """Mark the stage as ended; its checkpoint has served."""
        Done().write(self.stage(name))
        (self.stage(name) / "checkpoint.safetensors").unlink(missing_ok=True)

    def describe(self, record: RunRecord, recipe: Recipe) -> None:
        """Write `run.json`, once for every start from the beginning, and `recipe.yaml`.

        Only the teacher may change without such a start, for stage 3 is the first that it teaches.
        """
        if self.is_done(STAGES[0]) and RunRecord.path(self.path).exists():
            known = RunRecord.read(self.path)
            taught = {name: getattr(record, name) for name in ("teacher", "teacher_weights")}
            if (record := known.model_copy(update=taught)) != known:
                record.write(self.path)
        else:
            record.write(self.path)
        write_text(self.path / "recipe.yaml", recipe.to_yaml())

    def claim(self, keys: Mapping[str, StageKey], last: str) -> None:
        """Check that stages up to `last` were made from `keys`; nothing is changed.

        Raises:
            UserError: the folder holds something else, or another run; the first difference is
                named.
        """
        self._check_ours()
        for name in STAGES[: STAGES.index(last) + 1]:
            file = self.stage(name) / "key.json"
            key = keys[name].model_dump(mode="json")
            if file.exists() and (difference := _difference(read_json(file), key)):
                field, there, here = difference
                command = "prune" if name in STAGES[:2] else name
                raise UserError(
                    f"--out '{self.path}' holds another run: {field} is {there} there and {here} "
                    f"here; give another folder, or start over with `updp {command} --fresh`"
                )

    def begin(self, key: StageKey) -> None:
        """Make the folder of the key's stage, with the key in it."""
        key.write(self.path)

    def plan(self) -> Plan:
        """The plan that stage 2 left. Raises UserError before it did."""
        path = self.stage("search") / PLAN
        if not path.exists():
            raise UserError(f"'{self.path}' has no plan yet: run `updp search` first")
        return Plan.read_file(path)

    def search_result(self) -> SearchResult:
        """All that stage 2 scored, and its front. Raises UserError before it ended."""
        if not SearchResult.path(self.path).exists():
            raise UserError(f"'{self.path}' has no finished search: run `updp search`")
        return SearchResult.read(self.path)

    def result(self) -> Result:
        """The figures that stage 4 left."""
        return Result.read(self.path)

    def publish(self, stage: str, *names: str) -> None:
        """Put a stage's results at the top of the run directory."""
        for name in names:
            data = (self.stage(stage) / name).read_bytes()
            target = self.path / name
            if not target.exists() or target.read_bytes() != data:
                write_bytes(target, data)

    def branch(self, name: str, stages: Sequence[str], fill: Callable[[Path], None]) -> Path:
        """A run directory in this one that begins with its finished `stages`.

        Made once; `fill` may change what is in it before it is there.
        """
        path = self.path / "picks" / name
        if not path.exists():
            with self.lock():
                temporary = path.with_name(f".{name}.tmp")
                shutil.rmtree(temporary, ignore_errors=True)
                for stage in stages:
                    leave = shutil.ignore_patterns("*.db*")  # the search's store has served
                    shutil.copytree(self.stage(stage), temporary / stage, ignore=leave)
                for file in ("run.json", "recipe.yaml"):
                    shutil.copy(self.path / file, temporary)
                fill(temporary)
                temporary.rename(path)
        return path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out; the system lets go when this one ends, however it ends.

        Raises UserError when another process is at work here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.path / ".lock").acquire(blocking=False)
        except Timeout as error:
            raise UserError(
                f"another process is at work in '{self.path}': wait for it, or give another folder"
            ) from error
        with lock:
            for folder in (self.path, *map(self.stage, STAGES)):
                for torn in folder.glob(TEMPORARY):
                    torn.unlink()
            yield

    def clear(self, first: str) -> None:
        """Forget the stages from `first` on, and the results.

        Raises UserError, and removes nothing, where the folder holds something else.
        """
        self._check_ours()
        for name in (*SHIPPED, *RESULTS):  # first, for they would outlive a kill
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for name in STAGES[STAGES.index(first) :]:
            shutil.rmtree(self.stage(name), ignore_errors=True)

    def _check_ours(self) -> None:
        there = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not there.is_dir():
            raise UserError(f"--out '{self.path}': '{there}' is a file, give a folder")
        if there != self.path or (self.path / "run.json").exists():
            return
        if any(not file.name.startswith(".") for file in self.path.iterdir()):
            raise UserError(
                f"--out '{self.path}' holds other files and no run: give a new or empty folder"
            )


def _difference(there: Any, here: Any, path: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in [*there, *(n for n in here if n not in there)]:
            inner = f"{path}.{name}" if path else name
            if found := _difference(there.get(name), here.get(name), inner):
                return found
        return None
    return None if there == here else (path, repr(there), repr(here))
