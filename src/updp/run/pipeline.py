"""The stages in order, on one run directory; one that has ended is skipped."""

import logging
import time
from pathlib import Path
from types import ModuleType

from torch import nn

from updp.errors import UserError
from updp.io.progress import duration
from updp.plan import Plan
from updp.run.directory import PLAN, RunDirectory
from updp.run.load import load
from updp.run.records import Result, RunRecord
from updp.run.result import MODEL, RESULT, write_table
from updp.search import pick
from updp.stages import merge, search, sites, subnet, supernet
from updp.stages.context import STAGES, Context, RunInputs, StageKey

_log = logging.getLogger(__name__)

# Each has `make_key`, `check` (what can be refused before anything is written) and `run`.
_MODULES: dict[str, ModuleType] = {
    "sites": sites,
    "supernet": supernet,
    "search": search,
    "subnet": subnet,
    "merge": merge,
}


class Run:
    """One run: its inputs, its run directory, and the keys of its stages."""

    def __init__(self, inputs: RunInputs, out: Path) -> None:
        self.inputs, self.directory = inputs, RunDirectory(out)
        self.context = Context(**vars(inputs), root=out)
        self.context.keys = make_keys(self.context)

    def until(self, last: str = "merge") -> None:
        """Run all stages up to `last`, those that have ended left out.

        Raises UserError for a budget out of reach before anything is fitted or trained.
        """
        searches = STAGES.index(last) >= STAGES.index("search")
        if searches:
            self.context.require_budget()
        self._run("sites")
        if searches:
            search.check(self.context)
        for name in STAGES[1 : STAGES.index(last) + 1]:
            self._run(name)

    def only(self, name: str) -> None:
        """Run one stage; stage 1 finds the sites, too. Raises UserError where one is missing."""
        self._need(name)
        if name == "supernet":
            self._run("sites")
        self._run(name)

    def join_search(self) -> None:
        """Score plans beside the process that began the search, until there are enough."""
        self._need("search")
        if not self.directory.is_done("search"):
            search.check(self.context)
            search.join(self.context)

    def results(self) -> tuple[nn.Module, Plan, Result]:
        """The merged model, the plan and the figures, once stage 4 has ended."""
        model = load(self.directory.path, self.context.baseline)
        return model, self.directory.plan(), self.directory.result()

    def _run(self, name: str) -> None:
        stage = _MODULES[name]
        if name == "search" or not self.directory.is_done(name):
            stage.check(self.context)
        if self.directory.is_done(name):
            _log.info("%s has ended before", name)
        else:
            with self.directory.lock():
                start = time.monotonic()
                self.directory.describe(RunRecord.of(self.inputs), self.inputs.recipe)
                self.directory.begin(self.context.keys[name])
                done = stage.run(self.context)
                if name == "merge":
                    write_table(self.context, *done)
                self.directory.done(name)
                self.inputs.progress.say(f"{name}: took {duration(time.monotonic() - start)}")
        if name == "merge":
            self.directory.publish("search", PLAN)
            self.directory.publish("merge", MODEL, RESULT)

    def _need(self, name: str) -> None:
        for before in STAGES[1 : STAGES.index(name)]:
            if not self.directory.is_done(before):
                path = self.directory.path
                raise UserError(f"'{path}' has no {before} yet: run `updp {before}` first")


def open_run_directory(
    inputs: RunInputs, out: Path, *, last: str = "merge", fresh: str = ""
) -> Run:
    """The run of these inputs in the directory `out`; nothing of another run is touched.

    Args:
        inputs: opened and checked. With a `pick`, the run goes on in a directory of its own within
            this one, with another point of this one's search.
        out: the run directory; it need not be there.
        last: the last stage that will be asked for.
        fresh: a stage to start over from: it and all behind it are removed.

    Raises:
        UserError: `out` holds another run, or something else.
    """
    run = Run(inputs, out)
    if inputs.pick:
        run = _picked(run)
        if fresh in STAGES[:3]:  # which are the other run's
            fresh = "subnet"
    keys = run.context.keys
    if fresh:
        if before := STAGES.index(fresh):
            run.directory.claim(keys, STAGES[before - 1])
            if inputs.recipe.budget and run.directory.is_done("sites"):
                run.context.limits()  # before anything is lost
        run.directory.clear(fresh)
    run.directory.claim(keys, last)
    return run


def make_keys(context: Context) -> dict[str, StageKey]:
    """The key of each stage, each with the hash of the one before."""
    keys: dict[str, StageKey] = {}
    before = ""
    for name, stage in _MODULES.items():
        keys[name] = stage.make_key(context).model_copy(update={"after": before})
        before = keys[name].sha256
    return keys


def _picked(run: Run) -> Run:
    """The run in a directory of its own, made once, with another point of the search."""
    inputs, context = run.inputs, run.context
    run.directory.claim(context.keys, "search")
    result = pick(run.directory.search_result(), context.space, inputs.pick)
    name = "".join(c if c.isalnum() or c in ".=" else "-" for c in inputs.pick)

    def fill(folder: Path) -> None:
        search.write_result(context, result, inputs.pick, folder / "search")

    path = run.directory.branch(name, STAGES[:3], fill)
    other = Run(inputs, path)
    other.context.board = inputs.board.under("picks", name)
    return other
