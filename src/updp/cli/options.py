"""Options that several commands share, and the recipe that they add up to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from updp.errors import UserError
from updp.recipe import Budget as BudgetAmounts
from updp.recipe import Recipe

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="timm/NAME, torchvision/NAME, hf/DIR or path/file.py:factory."),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="digits, a folder of class folders, or a folder of Parquet files."),
]
Budget = Annotated[
    list[str] | None,
    typer.Option(
        help="blocks=K; latency, macs, parameters or memory as a share of the baseline's (0.7, "
        "70%, 1.5x) or an amount (12ms, 2G, 5M, 300MB). Several hold together."
    ),
]
Pick = Annotated[
    str | None,
    typer.Option(
        help="Another point of the finished search, in a folder of its own: a line of its front, "
        "or a budget."
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(help="Database URL where the search is kept; by default a file in --out."),
]
Worker = Annotated[
    bool,
    typer.Option("--worker", help="updp search: score plans beside the process that began it."),
]
Out = Annotated[Path, typer.Option(help="Run directory.")]
Teacher = Annotated[
    str | None,
    typer.Option(
        help="Whose logits stage 3 follows: a model named as by --model, of the data's classes; "
        "baseline is the model itself, the default."
    ),
]
TeacherWeights = Annotated[
    str | None, typer.Option(help="Safetensors file with the teacher's weights.")
]
Weights = Annotated[str | None, typer.Option(help="Safetensors file with the model's weights.")]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="default, fit-only, quick, paper; or a file.")
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", help="A plan.json to take instead of searching; needs no budget."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field of the recipe: subnet.epochs=20. Repeatable."),
]
Include = Annotated[
    list[str] | None,
    typer.Option(help="Only sites that match this glob: 'layer3.*'. Repeatable."),
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="No sites that match this glob. Repeatable.")
]
Size = Annotated[str | None, typer.Option(help="CxHxW, such as 3x224x224; the model's own.")]
Mean = Annotated[str | None, typer.Option(help="Normalisation: one number per channel, commas.")]
Std = Annotated[str | None, typer.Option(help="Normalisation: one number per channel, commas.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; cuda if there is one.")]
TensorBoard = Annotated[
    Path | None,
    typer.Option("--tensorboard", help="A folder for the run's curves, to watch in TensorBoard."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over; forget what is there.")]


def settle(
    file: Path | None,
    budget: list[str] | None,
    settings: list[str] | None,
    out: Path | None = None,
    input_size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    storage: str | None = None,
) -> Recipe:
    """The recipe: a file, else the one in the run directory, else the default; then options."""
    kept = out / "recipe.yaml" if out is not None else None
    if file is not None:
        recipe = Recipe.load(file)
    elif kept is not None and kept.exists():
        recipe = Recipe.load(kept)
    else:
        recipe = Recipe()
    changes = list(settings or [])
    if input_size is not None:
        changes.append(f"data.input_size={_numbers(input_size, 'x', '--input-size 3x224x224')}")
    if mean is not None:
        changes.append(f"data.mean={_numbers(mean, ',', '--mean 0.5,0.5,0.5')}")
    if std is not None:
        changes.append(f"data.std={_numbers(std, ',', '--std 0.5,0.5,0.5')}")
    if include:
        changes.append(f"candidates.include={json.dumps(include)}")
    if exclude:
        changes.append(f"candidates.exclude={json.dumps(exclude)}")
    if storage is not None:
        changes.append(f"search.storage={json.dumps(storage)}")
    recipe = recipe.updated(*changes) if changes else recipe
    if budget:
        update = {"budget": BudgetAmounts.parse(",".join(budget))}
        recipe = recipe.model_copy(update=update)
    return recipe


def _numbers(text: str, separator: str, example: str) -> list[float]:
    try:
        return [int(part) if separator == "x" else float(part) for part in text.split(separator)]
    except ValueError as error:
        raise UserError(f"{text!r} is not understood: write it as {example}") from error
