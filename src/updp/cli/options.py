"""Options shared by several commands, alone and in groups."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from updp.cli import completion
from updp.errors import UserError

if TYPE_CHECKING:
    from updp.recipe import Recipe

MODEL = "timm/NAME, torchvision/NAME, hf/DIR, zoo/NAME or path/file.py:factory."
DATA = "digits, a folder of class folders, or one of Parquet files, tar files or `datasets`."

ModelOption = Annotated[
    str | None, typer.Option("--model", help=MODEL, autocompletion=completion.model)
]
DataOption = Annotated[
    str | None, typer.Option("--data", help=DATA, autocompletion=completion.choose("digits"))
]
TestOption = Annotated[
    str | None,
    typer.Option(
        "--test",
        help="Data of the same forms whose test split is used; by default that of --data, or a "
        "tenth of its images where it has none.",
        autocompletion=completion.choose("digits"),
    ),
]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="Safetensors file with the model's weights.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="cpu, cuda, cuda:1; by default cuda where there is one.",
        autocompletion=completion.choose("cpu", "cuda"),
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--input-size",
        help="CxHxW, such as 3x224x224; by default the model's own, for a model file the images'.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start over; forget what is there.")]
PickOption = Annotated[
    str | None,
    typer.Option(
        "--pick",
        help="Another point of the finished search, in a folder of its own: a line of its front, "
        "or a budget.",
    ),
]

FinishedRun = Annotated[
    Path,
    typer.Argument(
        help="Run directory of a finished `updp prune`.", autocompletion=completion.run_directory
    ),
]


@dataclass(frozen=True)
class FinishedOptions:
    """Model, data and weights of a finished run, in case these files were moved."""

    model: ModelOption = None
    data: DataOption = None
    test: TestOption = None
    weights: WeightsOption = None


@dataclass(frozen=True)
class RunOptions(FinishedOptions):
    """Run directory, model and data; a run directory remembers its model and data."""

    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Run directory, by default runs/latest.",
            autocompletion=completion.run_directory,
        ),
    ] = Path("runs/latest")
    device: DeviceOption = None
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="A plan.json to take instead of searching; needs no budget."),
    ] = None
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            "--tensorboard", help="A folder for the run's curves, to watch in TensorBoard."
        ),
    ] = None
    log: Annotated[
        str | None,
        typer.Option(
            "--log",
            help="A tracker for the run's curves: tensorboard (in ./logs), wandb, mlflow, trackio "
            "or another that accelerate knows.",
            autocompletion=completion.choose("tensorboard", "wandb", "mlflow", "trackio"),
        ),
    ] = None


@dataclass(frozen=True)
class TeacherOptions:
    """The teacher of stage 3, and further images for which only the teacher gives targets."""

    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            help="Whose logits stage 3 follows: a model named as by --model, of the data's "
            "classes; baseline is the model itself, the default.",
            autocompletion=completion.model,
        ),
    ] = None
    teacher_weights: Annotated[
        str | None,
        typer.Option("--teacher-weights", help="Safetensors file with the teacher's weights."),
    ] = None
    unlabelled: Annotated[
        str | None,
        typer.Option(
            "--unlabelled",
            help="Further images for stage 3, of the same forms as --data; their labels, if any, "
            "are not used. `none` takes off those that the run had.",
        ),
    ] = None


@dataclass(frozen=True)
class RecipeOptions:
    """A recipe file or preset, and changes of its fields."""

    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            help="default, fit-only, repair, quick, paper, imagenet/NAME; or a YAML file.",
            autocompletion=completion.recipe,
        ),
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a field of the recipe: subnet.epochs=20. Repeatable.",
            autocompletion=completion.setting,
        ),
    ] = None
    include: Annotated[
        list[str] | None,
        typer.Option("--include", help="Only sites that match this glob: 'layer3.*'. Repeatable."),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="No sites that match this glob. Repeatable."),
    ] = None
    input_size: SizeOption = None

    def changes(self) -> list[str]:
        """Changes of the recipe as `field=value`, for `Recipe.updated`."""
        found = list(self.settings or [])
        if self.input_size is not None:
            size = parse_size(self.input_size)
            if len(size) != 3:
                raise UserError(f"--input-size {self.input_size!r}: write CxHxW, such as 3x224x224")
            found.append(f"data.input_size={list(size)}")
        if self.include:
            found.append(f"candidates.include={json.dumps(self.include)}")
        if self.exclude:
            found.append(f"candidates.exclude={json.dumps(self.exclude)}")
        return found

    def settle(self, run: Path | None = None) -> Recipe:
        """Read the recipe, by default the one in the directory `run`, and apply the changes."""
        from updp.recipe import Recipe

        recipe = Recipe()
        if self.recipe is not None:
            recipe = Recipe.load(self.recipe)
        elif run is not None and (run / "recipe.yaml").exists():
            recipe = Recipe.of_run(run)
        changes = self.changes()
        return recipe.updated(*changes) if changes else recipe


@dataclass(frozen=True)
class RunRecipeOptions(RecipeOptions):
    """A recipe with a budget and the normalisation of images."""

    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            help="blocks=K; latency, macs, parameters or memory as a share of the baseline's (0.7, "
            "70%, 1.5x) or an amount (12ms, 2G, 5M, 300MB). Several hold together.",
            autocompletion=completion.budget,
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option("--mean", help="Normalisation: one number per channel, with commas."),
    ] = None
    std: Annotated[
        str | None,
        typer.Option("--std", help="Normalisation: one number per channel, with commas."),
    ] = None

    def changes(self) -> list[str]:
        """See `RecipeOptions.changes`."""
        found = super().changes()
        for name, text in (("mean", self.mean), ("std", self.std)):
            if text is not None:
                found.append(f"data.{name}={_numbers(text, ',', f'--{name} 0.5,0.5,0.5')}")
        return found

    def settle(self, run: Path | None = None) -> Recipe:
        """See `RecipeOptions.settle`."""
        from updp.recipe import Budget

        recipe = super().settle(run)
        if self.budget:
            recipe = recipe.model_copy(update={"budget": Budget.parse(",".join(self.budget))})
        return recipe


def parse_size(text: str) -> tuple[int, ...]:
    """Parse (C, H, W) from `3x224x224`. Raises UserError."""
    return tuple(int(number) for number in _numbers(text, "x", "--input-size 3x224x224"))


def _numbers(text: str, separator: str, example: str) -> list[float]:
    try:
        return [int(part) if separator == "x" else float(part) for part in text.split(separator)]
    except ValueError as error:
        raise UserError(f"{text!r} is not understood: write it as {example}") from error
