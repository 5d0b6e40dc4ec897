"""`updp inspect | prune | supernet | search | subnet | merge`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from updp import api
from updp.cli.options import (
    Budget,
    DataOption,
    Device,
    Fresh,
    Mean,
    ModelOption,
    Out,
    RecipeFile,
    Set,
    Size,
    Std,
    Weights,
    settle,
)
from updp.cli.progress import Bars
from updp.cli.tables import print_inspection, print_result
from updp.errors import MergeError, UserError
from updp.pipeline import Run

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
    except MergeError as error:
        print(f"updp: {error}", file=sys.stderr)
        raise SystemExit(1) from None


@app.command()
def inspect(
    model: Annotated[
        str, typer.Argument(help="timm/NAME, torchvision/NAME or path/file.py:factory")
    ],
    input_size: Size = None,
    recipe: RecipeFile = None,
    settings: Set = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what can be pruned, what each block may become and what that costs."""
    chosen = settle(recipe, None, settings, input_size=input_size)
    with Bars(Console(stderr=True)) as bars:
        found = api.inspect(model, None, chosen, device=device, progress=bars)
    if as_json:
        sites = [offer.to_json() for offer in found.sites]
        print(json.dumps({"sites": sites, "unusable": [vars(u) for u in found.unusable]}, indent=2))
    else:
        print_inspection(console, found, chosen.measure.batch_size)


@app.command()
def prune(
    model: ModelOption = None,
    data: DataOption = None,
    budget: Budget = None,
    out: Out = Path("runs/latest"),
    weights: Weights = None,
    recipe: RecipeFile = None,
    settings: Set = None,
    input_size: Size = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = None,
    fresh: Fresh = False,
) -> None:
    """Run all four stages: a trained model in, a faster plain model out.

    The same command continues a run that was killed.
    """
    chosen = settle(recipe, budget, settings, out, input_size, mean, std)
    with Bars(console) as bars:
        job = api.make_job(*_names(model, data, out), chosen, _weights(weights, out), device, bars)
        run = Run(job, out, fresh="sites" if fresh else "")
        _, plan, result = run.run()
    print_result(console, result, plan, out)


def _stage(name: str, text: str) -> None:
    """Add the command of one stage."""

    def command(
        out: Out = Path("runs/latest"),
        model: ModelOption = None,
        data: DataOption = None,
        budget: Budget = None,
        weights: Weights = None,
        recipe: RecipeFile = None,
        settings: Set = None,
        input_size: Size = None,
        mean: Mean = None,
        std: Std = None,
        device: Device = None,
        fresh: Fresh = False,
    ) -> None:
        chosen = settle(recipe, budget, settings, out, input_size, mean, std)
        with Bars(console) as bars:
            job = api.make_job(
                *_names(model, data, out), chosen, _weights(weights, out), device, bars
            )
            run = Run(job, out, last=name, fresh=name if fresh else "")
            outcome = getattr(run, name)()
        if name == "merge":
            print_result(console, outcome[1], run.plan(), out)
        else:
            console.print(f"{name}: done, in {run.directory.stage(name)}")

    command.__doc__ = text
    app.command(name)(command)


_stage("supernet", "Stage 1: train baseline and pruned forms together, by the sandwich rule.")
_stage("search", "Stage 2: find the plan that keeps most accuracy at the budget.")
_stage("subnet", "Stage 3: train the plan's subnet progressively, lambda from 0 to 1.")
_stage("merge", "Stage 4: merge, prove it exact, and write the plain model.")


def _about(out: Path, name: str, given: str | None) -> str:
    """An option, or what the run in `out` was begun with."""
    if given is not None:
        return given
    file = out / "run.json"
    known = json.loads(file.read_text()).get(name) if file.exists() else None
    if not known:
        raise UserError(f"--{name} is missing: give it, or an --out that holds a run")
    return str(known)


def _names(model: str | None, data: str | None, out: Path) -> tuple[str, str]:
    return _about(out, "model", model), _about(out, "data", data)


def _weights(given: str | None, out: Path) -> str | None:
    file = out / "run.json"
    if given is not None or not file.exists():
        return given
    return json.loads(file.read_text()).get("weights") or None
