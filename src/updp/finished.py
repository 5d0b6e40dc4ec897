"""A finished run, opened again: both models, the data, and what was decided and measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from updp.engine.data import preprocess_for
from updp.engine.feed import Feed
from updp.engine.files import read_json
from updp.engine.progress import Progress
from updp.errors import UserError
from updp.merged import load
from updp.models import hash_state
from updp.opening import Data, make_job
from updp.plan import Plan
from updp.recipe import Recipe
from updp.result import Result

_FILES = ("run.json", "recipe.yaml", "plan.json", "model.safetensors", "result.json")


@dataclass(frozen=True)
class Finished:
    """Both models are in evaluation mode, on the feed's device.

    `about` is what `run.json` holds; `classes` are their names; `shape` is an image's (C, H, W).
    """

    path: Path
    about: dict[str, Any]
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
    about, recipe = read_json(path / "run.json"), Recipe.load(path / "recipe.yaml")
    if model is None and not about["model"]:
        raise UserError(f"'{path}' was made from a module: pass it as model")
    if data is None and not about["data"]:
        raise UserError(f"'{path}' was made from loaders: pass them as data")
    if model is None:
        model, weights = about["model"], weights or about["weights"] or None
    job = make_job(model, data or about["data"], recipe, weights, device, progress)
    key = read_json(path / "sites" / "key.json")
    for name, here in (("weights", hash_state(job.model)), ("data", job.source.fingerprint)):
        if key[name] != here:
            raise UserError(
                f"'{path}' was made from other {name} than '{about[name] or about['model']}' holds "
                f"now: give those that it was made from"
            )
    settings = recipe.data
    preprocess = preprocess_for(
        job.model,
        job.source.image_size,
        mean=settings.mean,
        std=settings.std,
        input_size=settings.input_size,
    )
    baseline = job.model.to(job.device).eval()
    return Finished(
        path,
        about,
        recipe,
        Plan.from_json((path / "plan.json").read_text(), str(path / "plan.json")),
        Result.model_validate(read_json(path / "result.json")),
        baseline,
        load(path, baseline),
        Feed(job.source, preprocess, settings, seed=recipe.seed, device=job.device),
        tuple(job.source.classes),
        tuple(job.source.image_size),
    )
