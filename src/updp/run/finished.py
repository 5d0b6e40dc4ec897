"""A finished run, opened again: both models, the data, and what was decided and measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import nn

from updp.data.feed import Feed
from updp.errors import UserError
from updp.io.progress import Progress
from updp.io.records import read_checked
from updp.models import hash_state
from updp.plan import Plan
from updp.recipe import Recipe
from updp.run.inputs import Data, make_job
from updp.run.load import About, load
from updp.run.result import Result

_FILES = (
    "run.json",
    "recipe.yaml",
    "plan.json",
    "model.safetensors",
    "result.json",
    "sites/key.json",
)


class Key(BaseModel):
    """The hashes of the model's state and of the data that a run was made from."""

    weights: str
    data: str


@dataclass(frozen=True)
class Finished:
    """Both models are in evaluation mode, on the feed's device.

    `classes` are their names; `shape` is an image's (C, H, W).
    """

    path: Path
    about: About
    recipe: Recipe
    plan: Plan
    result: Result
    baseline: nn.Module
    merged: nn.Module
    feed: Feed
    classes: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Where the models and the feed's images are."""
        return self.feed.device


def check_finished(run: str | Path) -> Path:
    """The run directory. Raises UserError when no run has ended there."""
    path = Path(run)
    for name in _FILES:
        if not (path / name).exists():
            raise UserError(
                f"'{path}' holds no finished run: there is no {name}; `updp prune` makes it"
            )
    return path


def check_weights(
    path: Path, baseline: nn.Module, model: nn.Module | str, file: str | Path | None
) -> Key:
    """What the run was made from, where `baseline` has its weights.

    `model` is what the baseline was opened as, and `file` what its weights are from, if they are.
    Raises UserError that names what has other weights.
    """
    key = read_checked(path / "sites" / "key.json", Key)
    if key.weights == hash_state(baseline):
        return key
    if isinstance(model, nn.Module):
        opened, advice = f"the {type(model).__name__} that was given", "load those into it"
    else:
        opened = f"'{file}'" if file is not None else f"'{model}' by itself"
        advice = "give those with --weights"
    raise UserError(f"'{path}' was made from other weights than {opened} has: {advice}")


def open_run(
    run: str | Path,
    model: nn.Module | str | None = None,
    data: Data | None = None,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Finished:
    """Open what `updp prune` left in the folder `run`.

    Model, weights and data are those that the run was begun with; they must be given where those
    came from Python and have no name. Nothing is written.

    Raises UserError: the run has not ended, or model or data are not what it was made from.
    """
    path = check_finished(run)
    about, recipe = read_checked(path / "run.json", About), Recipe.load(path / "recipe.yaml")
    plan = read_checked(path / "plan.json", Plan)
    result = read_checked(path / "result.json", Result)
    if model is None and not about.model:
        raise UserError(f"'{path}' was made from a module: pass it as model")
    if data is None and not about.data:
        raise UserError(f"'{path}' was made from loaders: pass them as data")
    file = about.weights_for(model, weights)
    job = make_job(model or about.model, data or about.data, recipe, file, device, progress)
    key = check_weights(path, job.model, model or about.model, file)
    if key.data != job.source.fingerprint:
        opened, advice = f"'{data or about.data}' has", "give that with --data"
        if isinstance(data, tuple):
            opened, advice = "the loaders have", "give those that it was made from"
        raise UserError(f"'{path}' was made from other data than {opened}: {advice}")
    baseline = job.model.to(job.device).eval()
    return Finished(
        path,
        about,
        recipe,
        plan,
        result,
        baseline,
        load(path, baseline),
        job.feed(),
        tuple(job.source.classes),
        tuple(job.source.image_size),
    )
