"""From names to a job: the model loaded, the data opened, the device checked."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from updp.data import Source, from_loaders, model_input_size, open_source
from updp.errors import UserError
from updp.io.progress import Progress, Silent
from updp.io.tracking import Board
from updp.models import load_model
from updp.models.teacher import BASELINE, load_teacher
from updp.plan import Plan
from updp.recipe import Recipe
from updp.run.job import Job

Data = str | Path | tuple[DataLoader, DataLoader]


def make_job(
    model: nn.Module | str,
    data: Data,
    recipe: Recipe,
    weights: str | Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    plan: Plan | None = None,
    pick: str | None = None,
    *,
    teacher: nn.Module | str | None = None,
    teacher_weights: str | Path | None = None,
    tensorboard: str | Path | None = None,
) -> Job:
    """Load the model and open the data. Raises UserError."""
    board = Board(tensorboard)  # before anything that takes time
    target, size = as_device(device), recipe.data.input_size
    if isinstance(model, nn.Module):
        if weights is not None:
            raise UserError("weights are for a model given by name: load them into your module")
        module, name = model, ""
        source = _open(data, size or model_input_size(model))
    else:
        name = model
        source = _open(data, size or model_input_size(load_model(model, seed=recipe.seed)))
        module = _trained(model, weights, len(source.classes), recipe.seed)
    named = teacher if isinstance(teacher, str) and teacher != BASELINE else ""
    return Job(
        module,
        name,
        source,
        "" if isinstance(data, tuple) else str(data),
        recipe,
        target,
        progress or Silent(),
        "" if weights is None else str(weights),
        plan,
        pick or "",
        load_teacher(teacher, teacher_weights, len(source.classes), recipe.seed),
        named,
        "" if teacher_weights is None else str(teacher_weights),
        board,
    )


def as_device(name: str | None) -> torch.device:
    """The device called so, by default CUDA where there is one. Raises UserError."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: try cpu") from error
    return device


def _trained(name: str, weights: str | Path | None, classes: int, seed: int) -> nn.Module:
    """The named model with as many classes as the data has, or as its weights have."""
    file = None if weights is None else Path(weights)
    try:
        return load_model(name, weights=file, num_classes=classes, seed=seed)
    except UserError:
        try:  # weights for other classes: the run will say so, better than their keys do
            return load_model(name, weights=file, seed=seed)
        except UserError:
            pass
        raise


def _open(data: Data, size: tuple[int, int, int] | None) -> Source:
    if isinstance(data, tuple):
        return from_loaders(*data)
    return open_source(str(data), input_size=size)
