"""A run opened from a command's options and its run directory, under progress bars."""

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
    fresh: str = "",
    pick: str | None = None,
    teacher: TeacherOptions | None = None,
    searches: bool = False,
) -> Iterator[Run]:
    """Open the run that the options name, and show progress bars while it works.

    What the options leave out is taken from the run directory. `last` and `fresh` are as for
    `open_run_directory`, `searches` as for `open_inputs`. Raises UserError.
    """
    with Bars(standard_console()) as bars:
        # Starting over from the beginning ignores the recipe in the run directory, too.
        starts_over = fresh == "sites" and last == "merge" and not pick
        inputs = read_inputs(
            options,
            recipe,
            bars,
            starts_over=starts_over,
            pick=pick,
            teacher=teacher,
            searches=searches,
        )
        yield open_run_directory(inputs, options.out, last=last, fresh=fresh)


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
    """Open the inputs that the options name; what they leave out is taken from the run directory.

    The recipe is not, where a run `starts_over`. `searches` is as for `open_inputs`. Raises
    UserError.
    """
    settings = recipe.settle(None if starts_over else options.out)
    record = RunRecord.read_if_there(options.out)
    model = options.model
    if model is None and record is not None:
        model = record.trusted("model", options.out)
    weights: str | Path | None = options.weights
    if weights is None and record is not None:
        weights = record.weights_for(options.model, None)
    same_model = record if record and options.model in (None, record.model) else None
    test = options.test
    if test is None and record is not None and options.data in (None, record.data):
        test = record.test or None
    teacher = teacher or TeacherOptions()
    teacher_name, teacher_weights = _teacher(teacher, same_model, options.out)
    unlabelled = teacher.unlabelled
    return open_inputs(
        _required("model", model, record),
        _required("data", options.data, record),
        settings,
        test=test,
        weights=weights,
        device=options.device,
        plan=None if options.plan is None else Plan.load(options.plan),
        pick=pick,
        teacher=teacher_name,
        teacher_weights=teacher_weights,
        unlabelled=unlabelled or (record.unlabelled if record else None) or None,
        tensorboard=options.tensorboard,
        log=options.log,
        progress=progress,
        searches=searches,
    )


def _required(name: str, option: str | None, record: RunRecord | None) -> str:
    """An option, else the field of that name in the run's record."""
    value = option if option is not None else getattr(record, name, "")
    if not value:
        raise UserError(f"--{name} is missing: give it, or an --out that holds a run")
    return str(value)


def _teacher(
    options: TeacherOptions, record: RunRecord | None, run: Path
) -> tuple[str | None, str | None]:
    """Name and weights of the teacher; the recorded weights go with the recorded teacher only."""
    name, weights = options.teacher, options.teacher_weights
    if record is not None:
        if name is None:
            name = record.trusted("teacher", run) or None
        if weights is None and name == record.teacher:
            weights = record.teacher_weights or None
    return name, weights


def say_done(run: Run, stage: str) -> None:
    """Print where a stage has left its files."""
    standard_console().print(f"{stage}: done, in {run.directory.stage(stage)}")
