"""Run the stages in order on one run directory, and skip finished ones.

docs/architecture.md ("Continuing after a kill") says from which file each stage goes on.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from updp.data.readers.encoded import TESTS
from updp.errors import MachineError, UserError, is_out_of_memory
from updp.io import processes
from updp.io.interrupts import Stopped
from updp.io.memory import hand_back
from updp.io.progress import duration
from updp.plan import Plan
from updp.run.directory import RunDirectory
from updp.run.input_checks import check_trainable
from updp.run.integrity import START_OVER, explained
from updp.run.keys import STAGE_MODULES, make_keys
from updp.run.load import load
from updp.run.records import Result, RunRecord
from updp.run.result import write_table
from updp.search import pick
from updp.stages import search, sites, supernet
from updp.stages.context import STAGES, Context, InputNames, RunInputs
from updp.stages.outputs import BaselineOutputs

_log = logging.getLogger(__name__)

# Checks with which a stage can refuse a run before anything is written.
_CHECKS = {"sites": sites.check, "supernet": supernet.check}


class Run:
    """One run: its inputs, its run directory, and the keys of its stages."""

    def __init__(self, inputs: RunInputs, out: Path) -> None:
        self.inputs, self.directory = inputs, RunDirectory(out)
        self.context = Context(**vars(inputs), root=out)
        self.context.keys = make_keys(self.context)

    def until(self, last: str = "merge") -> None:
        """Run all stages up to `last` that have not ended yet.

        Raises UserError for a budget out of reach, before anything is fitted or trained.
        """
        searches = STAGES.index(last) >= STAGES.index("search")
        if searches:
            self.context.require_budget()
        self._run("sites")
        if searches:
            self._check_search()
        for name in STAGES[1 : STAGES.index(last) + 1]:
            self._run(name)

    def only(self, name: str) -> None:
        """Run one stage (`supernet` after `sites`). Raises UserError if an earlier is missing."""
        self._need(name)
        if name == "supernet":
            self._run("sites")
        self._run(name)

    def results(self) -> tuple[nn.Module, Plan, Result]:
        """The merged model, the plan and the result, once stage 4 has finished."""
        model = load(self.directory.path, self.context.baseline)
        return model, self.directory.plan(), self.directory.result()

    def _run(self, name: str) -> None:
        is_done = self.directory.is_done(name)
        if name == "search":
            self._check_search()
        elif name in _CHECKS and not is_done:
            _CHECKS[name](self.context)
        with explained(self.directory.path):
            if is_done:
                _log.info("%s has ended before", name)
            else:
                with self.directory.lock():
                    self._work(name)
            if name == "merge":
                self.directory.publish()
        processes.barrier()  # the other processes read files of the stage

    def _check_search(self) -> None:
        """Raise UserError if the budget is out of reach, or latencies are from another device."""
        search.check(self.context)
        if self.directory.is_done("search") or self.inputs.plan is not None:
            return
        path, device = self.directory.path, self.context.device
        with explained(path):
            known = RunRecord.read(path).device
        if self.inputs.recipe.measure.runtime == "openvino":  # always timed on the CPU
            return
        if known.partition(":")[0] not in ("", device.type):
            raise UserError(
                f"candidates of '{path}' were timed on {known!r}, and plans would be on {device}: "
                f"go on with --device {known}, or start over with --fresh"
            )

    def _work(self, name: str) -> None:
        """Run a stage, unless another process finished it while this one waited for the lock."""
        self.directory.check_keys(self.context.keys, name)
        if self.directory.is_done(name):
            return
        start = time.monotonic()
        self.directory.write_records(RunRecord.of(self.context), self.inputs.recipe)
        self.directory.make_stage(name)
        self.context.keys[name].write(self.directory.path)
        hand_back()
        with _naming(name):
            merged = STAGE_MODULES[name].run(self.context)
            if name == "merge":
                write_table(self.context, *merged)
        self.directory.mark_done(name)
        self.inputs.progress.say(f"{name}: took {duration(time.monotonic() - start)}")

    def _need(self, name: str) -> None:
        for before in STAGES[1 : STAGES.index(name)]:
            if not self.directory.is_done(before):
                path = self.directory.path
                raise UserError(f"'{path}' has no {before} yet: run `updp {before}` first")


# Settings that reduce the memory of each stage.
_LIGHTER = {
    "sites": "measure.batch_size",
    "supernet": "fit.rows_mb, fit.images or data.batch_size, or set supernet.checkpointing=true",
    "search": "search.reuse_mb, search.refined_images or fit.rows_mb",
    "subnet": "fit.rows_mb or data.batch_size (with subnet.accumulate as many images are in a "
    "step), or set subnet.checkpointing=true",
    "merge": "measure.batch_size or data.batch_size",
}


@contextmanager
def _naming(stage: str) -> Iterator[None]:
    """Context that adds the stage's name to a stop, and advice to a lack of memory.

    Raises MachineError.
    """
    try:
        yield
    except Stopped as stopped:
        stopped.stage = stage
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(
            f"memory does not suffice for the stage {stage}: lower {_LIGHTER[stage]}; "
            "`updp estimate` says what each stage needs"
        ) from error


def open_run_directory(
    inputs: RunInputs, out: Path, *, last: str = "merge", restart_from: str = ""
) -> Run:
    """Open the run with these inputs in the directory `out`, which may be new.

    Args:
        inputs: the opened and checked inputs. With a `pick`, the run is a directory in `out`/picks
            that continues with another point of the search in `out`.
        out: the run directory.
        last: the last stage that will be run.
        restart_from: a stage to restart from: it and all later ones are removed.

    Raises:
        UserError: `out` holds another run, or other files; or nothing of the model is trainable,
            and the recipe trains.
    """
    check_trainable(inputs.baseline, inputs.recipe)
    _check_apart(out, inputs.names)
    with explained(out):
        return _open(Run(inputs, out), last, restart_from)


def _check_apart(out: Path, names: InputNames) -> None:
    """Raise UserError if the run directory is inside the data, where it would look like a class."""
    for data in filter(None, (names.data, names.test)):
        root, place = Path(data).resolve(), out.resolve()
        if not root.is_dir() or root not in place.parents:
            continue
        splits = [name for name in ("train", *TESTS) if (root / name).is_dir()]
        if not splits or place.relative_to(root).parts[0] in splits:
            raise UserError(
                f"--out '{out}' lies among the images of '{data}', as whose it would be read: give "
                "a folder outside of it"
            )


def _open(run: Run, last: str, restart_from: str) -> Run:
    inputs = run.inputs
    if inputs.pick:
        run = _picked(run)
        if restart_from in STAGES[:3]:  # these are copies of the other run's
            restart_from = "subnet"
    keys = run.context.keys
    if restart_from:
        if before := STAGES.index(restart_from):
            run.directory.check_keys(keys, STAGES[before - 1])
            run.directory.check_files(STAGES[before - 1])
            if inputs.recipe.budget and run.directory.is_done("sites"):
                run.context.limits()  # refuses a budget out of reach before anything is removed
        processes.barrier()  # all processes must have read what is removed now
        run.directory.clear(restart_from)
        processes.barrier()
        keys = run.context.keys = make_keys(run.context)  # no longer with names from removed keys
    run.directory.check_keys(keys, last)
    run.directory.check_files(last)
    if run.directory.is_done("sites"):
        _check_model(run.context)
    processes.barrier()
    return run


def _check_model(context: Context) -> None:
    """Raise UserError if the model has the same weights as the run's, but other outputs."""
    if known := BaselineOutputs.read_if_there(context.root):
        known.check(
            context.baseline,
            context.example(2),
            f"--out '{context.root}' holds another run: with the same weights the model gave other "
            "outputs there ({by} apart), so its code or its settings have changed; give another "
            f"folder, or {START_OVER}",
        )


def _picked(run: Run) -> Run:
    """The run in `picks` that continues with another point of the search."""
    inputs, context = run.inputs, run.context
    run.directory.check_keys(context.keys, "search")
    run.directory.check_files("search")
    result = pick(run.directory.search_result(), context.space, inputs.pick)
    # Made valid as a folder name: a budget may contain commas and percent signs.
    name = "".join(c if c.isalnum() or c in ".=" else "-" for c in inputs.pick)

    def fill(folder: Path) -> None:
        search.write_result(context, result, inputs.pick, folder / "search")

    path = run.directory.branch(name, STAGES[:3], fill)
    other = Run(inputs, path)
    other.context.board = inputs.board.under("picks", name)
    return other
