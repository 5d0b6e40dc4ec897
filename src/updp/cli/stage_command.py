"""What `prune` and the commands of the four stages do: open a run, run stages, show what is new."""

from __future__ import annotations

from typing import TYPE_CHECKING

from updp.cli.options import RunOptions, RunRecipeOptions, TeacherOptions

if TYPE_CHECKING:
    from rich.console import Console

    from updp.io.progress import Progress
    from updp.run.pipeline import Run


def open_run(
    run: RunOptions,
    recipe: RunRecipeOptions,
    progress: Progress,
    *,
    last: str,
    fresh: str = "",
    pick: str | None = None,
    storage: str | None = None,
    teacher: TeacherOptions | None = None,
) -> Run:
    """The run that the options are about; what they leave out the run directory knows.

    `last` is the last stage that will be asked for, `fresh` one to start over from. Starting over
    from the beginning forgets the recipe in the run directory too.
    """
    from updp.cli.remembered import Remembered, read_plan
    from updp.run.inputs import open_inputs
    from updp.run.pipeline import open_run_directory

    forgotten = fresh == "sites" and last == "merge" and not pick
    settled = recipe.settle(None if forgotten else run.out)
    if storage is not None:
        search = settled.search.model_copy(update={"storage": storage})
        settled = settled.model_copy(update={"search": search})
    known = Remembered(run.out)
    taught_by, taught_with = known.teacher(run.model, teacher or TeacherOptions())
    inputs = open_inputs(
        known.required("model", run.model),
        known.required("data", run.data),
        settled,
        weights=known.weights(run.model, run.weights),
        device=run.device,
        plan=read_plan(run.plan),
        pick=pick,
        teacher=taught_by,
        teacher_weights=taught_with,
        tensorboard=run.tensorboard,
        progress=progress,
    )
    return open_run_directory(inputs, run.out, last=last, fresh=fresh)


def say_done(console: Console, run: Run, stage: str) -> None:
    """Where a stage has left what it made."""
    console.print(f"{stage}: done, in {run.directory.stage(stage)}")
