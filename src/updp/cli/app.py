"""`updp inspect | prune | supernet | search | subnet | merge`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from updp import api
from updp.cli.bench import bench
from updp.cli.export import export
from updp.cli.options import (
    Budget,
    DataOption,
    Device,
    Exclude,
    Fresh,
    Include,
    Mean,
    ModelOption,
    Out,
    Pick,
    PlanFile,
    RecipeFile,
    Set,
    Size,
    Std,
    Storage,
    Teacher,
    TeacherWeights,
    TensorBoard,
    Weights,
    Worker,
    settle,
)
from updp.cli.progress import Bars
from updp.cli.quantise import quantise
from updp.cli.remembered import about, read_plan, teacher_of, weights_of
from updp.cli.report import report
from updp.cli.tables import print_front, print_inspection, print_result
from updp.errors import ExportError, MergeError, UserError
from updp.run.inputs import open_inputs
from updp.run.pipeline import open_run_directory

app = typer.Typer(
    name="updp",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Make a trained vision model shallower, and so faster, with little loss of accuracy.\n\n"
    "[b]updp inspect[/b] shows what can be pruned; [b]updp prune[/b] does all of it; the other "
    "commands are its four stages, each on the same run directory.",
)
console = Console(width=None if sys.stdout.isatty() else 140)


def main() -> None:
    """Entry point: errors that the user can put right are one line and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"updp: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (ExportError, MergeError) as error:
        print(f"updp: {error}", file=sys.stderr)
        raise SystemExit(1) from None


@app.command()
def inspect(
    model: Annotated[
        str, typer.Argument(help="timm/NAME, torchvision/NAME, hf/DIR or path/file.py:factory")
    ],
    input_size: Size = None,
    include: Include = None,
    exclude: Exclude = None,
    recipe: RecipeFile = None,
    settings: Set = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what can be pruned, what each block may become and what that costs."""
    chosen = settle(recipe, None, settings, input_size=input_size, include=include, exclude=exclude)
    with Bars(Console(stderr=True)) as bars:
        found = api.inspect(model, None, chosen, device=device, progress=bars)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print_inspection(console, found, chosen.measure.batch_size)


def _add(name: str, text: str) -> None:
    """Add the command that runs one stage, or with `prune` all four."""

    def command(
        model: ModelOption = None,
        data: DataOption = None,
        budget: Budget = None,
        out: Out = Path("runs/latest"),
        weights: Weights = None,
        recipe: RecipeFile = None,
        settings: Set = None,
        plan: PlanFile = None,
        include: Include = None,
        exclude: Exclude = None,
        input_size: Size = None,
        mean: Mean = None,
        std: Std = None,
        device: Device = None,
        fresh: Fresh = False,
        storage: Storage = None,
        pick: Pick = None,
        teacher: Teacher = None,
        teacher_weights: TeacherWeights = None,
        tensorboard: TensorBoard = None,
        worker: Worker = False,
    ) -> None:
        if worker and name != "search":
            raise UserError(f"--worker is for `updp search`, not for `updp {name}`")
        everything = name == "prune"
        # Starting over from the beginning forgets the recipe too.
        kept = None if everything and fresh and not pick else out
        globs = {"include": include, "exclude": exclude}
        chosen = settle(
            recipe, budget, settings, kept, input_size, mean, std, **globs, storage=storage
        )
        first, last = ("sites", "merge") if everything else (name, name)
        if name == "supernet":
            first = "sites"  # which have no command of their own
        with Bars(console) as bars:
            names = about(out, "model", model), about(out, "data", data)
            taught_by, taught_with = teacher_of(teacher, teacher_weights, out, model)
            inputs = open_inputs(
                *names,
                chosen,
                weights=weights_of(weights, out, model),
                device=device,
                plan=read_plan(plan),
                pick=pick,
                teacher=taught_by,
                teacher_weights=taught_with,
                tensorboard=tensorboard,
                progress=bars,
            )
            run = open_run_directory(inputs, out, last=last, fresh=first if fresh else "")
            if worker:
                run.join_search()
            elif everything:
                run.until("merge")
            else:
                run.only(name)
        directory = run.directory
        if worker:
            console.print("search: there are enough plans; `updp search` takes the best of them")
        elif last == "merge":
            print_result(console, directory.result(), directory.plan(), directory.path)
        else:
            if name == "search" and inputs.plan is None:
                print_front(console, directory.search_result())
            console.print(f"{name}: done, in {directory.stage(name)}")

    command.__doc__ = text
    app.command(name)(command)


_add(
    "prune",
    "Run all four stages: a trained model in, a faster plain model out.\n\n"
    "The same command continues a run that was killed.",
)
_add("supernet", "Stage 1: train baseline and pruned forms together, by the sandwich rule.")
_add("search", "Stage 2: find the plan that keeps most accuracy at the budget.")
_add("subnet", "Stage 3: train the plan's subnet progressively, lambda from 0 to 1.")
_add("merge", "Stage 4: merge, prove it exact, and write the plain model.")
app.command()(report)
app.command()(bench)
app.command()(export)
app.command()(quantise)
