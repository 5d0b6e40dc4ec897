"""Opening a run from a command's options and its run directory, with progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from updp.cli.options import RunOptions, RunRecipeOptions, TeacherOptions
from updp.cli.tables import standard_console
from updp.errors import UserError
from updp.io.bars import Bars
from updp.io.progress import Progress
from updp.plan import Plan
from updp.run.directory import RunDirectory
from updp.run.given import Given
from updp.run.input_checks import warn_of_idle_budget
from updp.run.inputs import open_inputs
from updp.run.pipeline import Run, open_run_directory
from updp.run.records import RunRecord
from updp.stages.context import RunInputs


@contextmanager
def open_run(
    options: RunOptions,
    recipe: RunRecipeOptions,
    *,
    last: str,
    restart_from: str = "",
    pick: str | None = None,
    teacher: TeacherOptions | None = None,
    searches: bool = False,
) -> Iterator[Run]:
    """Open the run that the options name, and show progress bars while it works.

    Missing options are taken from the run directory. `last` and `restart_from` are as for
    `open_run_directory`, `searches` as for `open_inputs`. Raises UserError.
    """
    with Bars(standard_console()) as bars:
        # Starting over from the beginning ignores the recipe in the run directory, too.
        starts_over = restart_from == "sites" and last == "merge" and not pick
        inputs = read_inputs(
            options,
            recipe,
            bars,
            starts_over=starts_over,
            pick=pick,
            teacher=teacher,
            searches=searches,
        )
        yield open_run_directory(inputs, options.out, last=last, restart_from=restart_from)


def read_inputs(
    options: RunOptions,
    recipe: RunRecipeOptions,
    progress: Progress,
    *,
    starts_over: bool = False,
    pick: str | None = None,
    teacher: TeacherOptions | None = None,
    searches: bool = True,
) -> RunInputs:
    """Open the inputs that the options name; missing options are taken from the run directory.

    A run that `starts_over` takes only the model, with its weights, and the data, with its test
    split, from there. `searches` is as for `open_inputs`. Raises UserError.
    """
    settings = recipe.settle(None if starts_over else options.out)
    # A damaged record must not prevent a run from starting over.
    replaced = starts_over and options.model is not None and options.data is not None
    record = None if replaced else RunRecord.read_if_there(options.out)
    known = None if starts_over else record  # source of options that were not given again
    model = options.model
    if model is None and record is not None:
        model = record.trusted("model", options.out)
    weights: str | Path | None = options.weights
    if weights is None and (found := known if options.model else record) is not None:
        weights = found.weights_for(options.model, None)
    same_model = known if known and options.model in (None, known.model) else None
    test = options.test
    if test is None and (found := known if options.data else record) is not None:
        test = found.test or None if options.data in (None, found.data) else None
    teacher = teacher or TeacherOptions()
    teacher_name, teacher_weights = _teacher(teacher, same_model, options.out)
    unlabelled = teacher.unlabelled
    if unlabelled is None and known is not None:
        unlabelled = known.unlabelled
    plan = None if options.plan is None else Plan.load(options.plan)
    warn_of_idle_budget(plan, settings.budget if recipe.budget else None)
    if plan is None and not (starts_over or recipe.budget or pick):
        plan = RunDirectory(options.out).given_plan(settings.budget)
    given = Given(
        _required("model", model, record),
        _required("data", options.data, record),
        test=test,
        weights=weights,
        teacher=teacher_name,
        teacher_weights=teacher_weights,
        unlabelled=None if unlabelled in ("none", "") else unlabelled,
    )
    return open_inputs(
        given,
        settings,
        device=options.device,
        plan=plan,
        pick=pick,
        tensorboard=options.tensorboard,
        log=options.log,
        progress=progress,
        searches=searches,
    )


def _required(name: str, option: str | None, record: RunRecord | None) -> str:
    """Return an option, or by default the field of this name in the run's record."""
    value = option if option is not None else getattr(record, name, "")
    if not value and record is not None:
        raise UserError(
            f"--{name} is missing: the run's own came from Python, where it has no name; go on "
            "there, by updp.prune with the same arguments"
        )
    if not value:
        raise UserError(f"--{name} is missing: give it, or an --out that holds a run")
    return str(value)


def _teacher(
    options: TeacherOptions, record: RunRecord | None, run: Path
) -> tuple[str | None, str | None]:
    """Return the teacher's name and weights; recorded weights are used only if it is the same."""
    name, weights = options.teacher, options.teacher_weights
    if record is not None:
        if name is None:
            name = record.trusted("teacher", run) or None
        if weights is None and name == record.teacher:
            weights = record.teacher_weights or None
    return name, weights


def say_done(run: Run, stage: str) -> None:
    """Print the folder with a stage's files."""
    standard_console().print(f"{stage}: done, in {run.directory.folder(stage)}")
