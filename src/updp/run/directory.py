"""The run directory: stage folders with keys, locking, publishing and clearing.

run.json            model, data, device, versions, command
recipe.yaml         the recipe
sites/ supernet/ search/ subnet/ merge/
    key.json        the inputs and settings that decide the stage's outcome
    figures.jsonl   its figures, one JSON object a line
    ...             its weights, scores or checks
    done.json       written when it has finished: length and checksum of each of these files
plan.json  model.safetensors  result.json
export/ bench/      files and records of `updp export`, `quantize` and `bench`
picks/              run directories for other points of the search's front

Schemas of the JSON files are in `records`.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from updp.errors import DamagedError, UserError
from updp.io import processes
from updp.io.files import (
    TEMPORARY,
    discard,
    in_the_way,
    read_json,
    sweep,
    write_bytes,
    write_text,
)
from updp.plan import Plan
from updp.recipe import Budget, Recipe
from updp.run.integrity import PUBLISHED, check_stages, explained, seal
from updp.run.records import Done, Result, RunRecord
from updp.search import SearchResult
from updp.stages.context import STAGES, StageKey
from updp.stages.search import FITTED, SCORES
from updp.training.checkpoint import CHECKPOINT

_HASH = re.compile("'[0-9a-f]{64}'")
PICKS = "picks"  # folder of runs that continue with another point of the search
DERIVED = ("export", "bench", "report.html", "report.md")  # files made from the results


class RunDirectory:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def folder(self, name: str) -> Path:
        """The folder of a stage."""
        return self.path / name

    def make_stage(self, name: str) -> None:
        """Make the folder of a stage; if it is a link, make the target."""
        if processes.is_first():
            self.folder(name).resolve().mkdir(parents=True, exist_ok=True)

    def is_done(self, name: str) -> bool:
        """Whether a stage has finished; every process must ask, and all get the same answer."""
        return processes.broadcast((self.folder(name) / Done.FILE).exists())

    def mark_done(self, name: str) -> None:
        """Mark a stage as finished, listing its files, and remove its checkpoint."""
        if processes.is_first():
            seal(self.folder(name)).write(self.folder(name))
            (self.folder(name) / CHECKPOINT).unlink(missing_ok=True)

    def write_records(self, record: RunRecord, recipe: Recipe) -> None:
        """Write `recipe.yaml`, and at the start of a run `run.json`.

        Later `run.json` changes only in the inputs of stage 3 (teacher and unlabelled images), and
        in the command if the recipe changes.
        """
        path, text = self.path / "recipe.yaml", recipe.to_yaml()
        if self.is_done(STAGES[0]) and RunRecord.path(self.path).exists():
            known = RunRecord.read(self.path)
            fields = ["teacher", "teacher_weights", "unlabelled"]
            if not path.exists() or path.read_bytes() != text.encode():  # it may be damaged
                fields.append("command")
            new = {name: getattr(record, name) for name in fields}
            if (record := known.model_copy(update=new)) != known:
                record.write(self.path)
        else:
            record.write(self.path)
        write_text(path, text)

    def check_keys(self, keys: Mapping[str, StageKey], last: str) -> None:
        """Check that the stages up to `last` were made from `keys`; writes nothing.

        Raises UserError if the folder holds other files, or another run; the first difference is
        named.
        """
        self._check_ours()
        with explained(self.path):
            for name in STAGES[: STAGES.index(last) + 1]:
                self._check_key(name, keys[name].model_dump(mode="json"))

    def _check_key(self, name: str, key: dict[str, Any]) -> None:
        file = self.folder(name) / "key.json"
        if not file.exists():
            if (self.folder(name) / Done.FILE).exists():
                raise DamagedError(file, "is missing")
            return
        known = read_json(file)
        if not isinstance(known, dict):
            raise DamagedError(file, "is not what updp writes")
        if difference := _difference(known, key):
            if difference[0] == "pick" and self.path.parent.name == PICKS:
                run = self.path.parent.parent
                raise UserError(
                    f"'{self.path}' goes on with a pick of '{run}': give --out '{run}' --pick "
                    f"{difference[1]}"
                )
            raise UserError(
                f"--out '{self.path}' holds another run: {_told(*difference)}; give another "
                "folder, or add --fresh to start over (in Python fresh=True)"
                + (f"; `updp {name} --fresh` keeps the stages before it" * (name in STAGES[2:]))
            )

    def check_files(self, last: str) -> None:
        """Check that finished stages up to `last` have the files that they wrote.

        Raises UserError that names a file and the stage to rerun.
        """
        check_stages(self.path, *STAGES[: STAGES.index(last) + 1], logs=False)

    def plan(self) -> Plan:
        """The plan of stage 2. Raises UserError if that has not finished."""
        path = self.folder("search") / Plan.FILE
        if not path.exists():
            raise UserError(f"'{self.path}' has no plan yet: run `updp search` first")
        return Plan.read_file(path)

    def given_plan(self, budget: Budget | None) -> Plan | None:
        """The plan that the run was started with instead of a search.

        None if there is none, it cannot be read, or `budget` differs from the run's.
        """
        with suppress(DamagedError, FileNotFoundError):
            known = read_json(self.folder("supernet") / "key.json")
            given = isinstance(known, dict) and known.get("candidates") is not None
            if given and Recipe.of_run(self.path).budget == budget:
                return Plan.read_file(self.folder("search") / Plan.FILE)
        return None

    def search_result(self) -> SearchResult:
        """Scores and front of stage 2. Raises UserError if that has not finished."""
        if not SearchResult.path(self.path).exists():
            raise UserError(f"'{self.path}' has no finished search: run `updp search`")
        return SearchResult.read(self.path)

    def result(self) -> Result:
        """The result of stage 4."""
        return Result.read(self.path)

    def publish(self) -> None:
        """Copy the results of verified stages to the top of the run directory."""
        if not processes.is_first():
            return
        copies = {name: (self.folder(s) / name).read_bytes() for name, s in PUBLISHED.items()}
        # If a finished run is run again, its files stay untouched.
        if any(self._differs(*copy) for copy in copies.items()) or any(self.path.glob(TEMPORARY)):
            with self.lock():
                for name, data in copies.items():
                    if self._differs(name, data):
                        write_bytes(self.path / name, data)

    def _differs(self, name: str, data: bytes) -> bool:
        target = self.path / name
        return not target.is_file() or target.read_bytes() != data

    def branch(self, name: str, stages: Sequence[str], fill: Callable[[Path], None]) -> Path:
        """The run directory `picks/NAME`, made once, with copies of these finished `stages`.

        `fill` may change its content before the folder gets its final name.
        """
        path = self.path / PICKS / name
        if processes.is_first() and not path.exists():
            with self.lock():
                temporary = path.with_name(f".{name}.tmp")
                shutil.rmtree(temporary, ignore_errors=True)
                for stage in stages:
                    scores = shutil.ignore_patterns(SCORES, FITTED)  # of the finished search
                    shutil.copytree(self.folder(stage), temporary / stage, ignore=scores)
                for file in ("run.json", "recipe.yaml"):
                    shutil.copy(self.path / file, temporary)
                fill(temporary)
                for stage in stages:
                    seal(temporary / stage).write(temporary / stage)
                temporary.rename(path)
        processes.barrier()
        return path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Context that locks the directory. Raises UserError if another process is active in it.

        The system releases the lock when this process ends, even by a kill. Of several processes of
        one run only the first takes it.
        """
        if not processes.is_first():
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.path / ".lock").acquire(blocking=False)
        except Timeout as error:
            raise UserError(
                f"another process is at work in '{self.path}': wait for it, or give another folder"
            ) from error
        with lock:
            for folder in (self.path, *map(self.folder, STAGES)):
                sweep(folder)
            yield

    def clear(self, first: str) -> None:
        """Remove the stages from `first` on, and all results.

        Raises UserError, and removes nothing, if the folder holds other files or another process is
        active in it.
        """
        self._check_ours()
        if not processes.is_first() or not self.path.exists():
            return
        with explained(self.path), self.lock():
            # Results first, then stages from the last one: a kill must not leave a stage without
            # the stages before it. Picks are copies of the first three stages.
            picks = [PICKS] if first in STAGES[:3] else []
            later = reversed(STAGES[STAGES.index(first) :])
            for name in (*DERIVED, *picks, *PUBLISHED, *later):
                discard(self.path / name)

    def _check_ours(self) -> None:
        if blocked := in_the_way(self.path):
            raise UserError(f"--out '{self.path}': {blocked}, give a folder")
        if not self.path.exists() or (self.path / "run.json").exists():
            return
        # Hidden files may be the lock, or a file manager's.
        if any(not file.name.startswith(".") for file in self.path.iterdir()):
            raise UserError(
                f"--out '{self.path}' holds other files and no run: give a new or empty folder"
            )


def _told(field: str, found: str, wanted: str) -> str:
    """Describe the difference of two runs in words."""
    if field == "frozen":
        return "other parameters are frozen (requires_grad=False) than it has noted"
    if _HASH.fullmatch(found) and _HASH.fullmatch(wanted):
        what = {
            "data": "the images, their labels or what is made of them before the model",
            "teacher_weights": "the teacher's weights",
            "unlabelled": "the unlabelled images",
        }
        return f"{what.get(field, f'the {field}')} are not those of that run"
    if field == "kind_of_budget":
        given = "a given plan"
        kinds = {"'blocks'": "a number of blocks", "'costs'": "latency, MACs, parameters or memory"}
        found, wanted = (kinds.get(kind, given) for kind in (found, wanted))
        return f"it was begun for {found}, and now it is for {wanted} (--budget or --plan)"
    none = "the baseline" if field == "teacher" else "none by name"
    found, wanted = (text if text != "''" else none for text in (found, wanted))
    return f"{field} is {found} there and {wanted} here"


def _difference(old: Any, new: Any, path: str = "") -> tuple[str, str, str] | None:
    """The path of the first field that differs between nested dicts, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old | new:
            inner = f"{path}.{name}" if path else name
            if difference := _difference(old.get(name), new.get(name), inner):
                return difference
        return None
    return None if old == new else (path, repr(old), repr(new))
