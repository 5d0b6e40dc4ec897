"""The inputs of a run (model, data, teacher, device), opened and checked in one call."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from updp.data import Source, from_loaders, open_source, preprocess_for, resize_for
from updp.data.feed import Feed
from updp.errors import UserError
from updp.io.progress import Progress, Silent
from updp.io.seeds import random_state
from updp.io.tracking import Board
from updp.models import hash_state, load_model, num_outputs
from updp.models.teacher import BASELINE, load_teacher, make_teacher
from updp.plan import Plan
from updp.recipe import DataSettings, Recipe
from updp.search import SEARCHERS
from updp.stages.context import InputHashes, InputNames, RunInputs

Data = str | Path | tuple[DataLoader[Any], DataLoader[Any]]


@random_state()  # a user's data set may draw whenever an image is read
def open_inputs(
    model: nn.Module | str,
    data: Data,
    recipe: Recipe,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    plan: Plan | None = None,
    pick: str | None = None,
    teacher: nn.Module | str | None = None,
    teacher_weights: str | Path | None = None,
    tensorboard: str | Path | None = None,
    log: str | None = None,
    progress: Progress | None = None,
    check: Callable[[nn.Module, Source], None] = lambda model, source: None,
) -> RunInputs:
    """Load the model and the teacher, open the data, and check that they fit together.

    Nothing is written, and a module of the user's is copied. The arguments are those of
    `updp.prune`; `check` may refuse model and data before any work.

    Raises:
        UserError: something is missing, unusable, or does not fit the rest.
    """
    # What needs an optional package comes first: loading models and data may take minutes.
    board = Board(tensorboard, log)
    if plan is None:
        SEARCHERS[recipe.search.searcher].check_installed()
    target = as_device(device)
    if isinstance(model, nn.Module):
        if weights is not None:
            raise UserError("weights are for a model given by name: load them into your module")
        module, name = model, ""
        source = _open_source(data, model, recipe.data)
    else:
        name = model
        # Loaded twice: the model says its image size, and then the data its number of classes.
        source = _open_source(data, load_model(model, seed=recipe.seed), recipe.data)
        module = _trained(model, weights, len(source.classes), recipe.seed)
    check(module, source)
    teacher_name = teacher if isinstance(teacher, str) and teacher != BASELINE else ""
    names = InputNames(
        model=name,
        weights="" if weights is None else str(weights),
        data="" if isinstance(data, tuple) else str(data),
        teacher=teacher_name,
        teacher_weights="" if teacher_weights is None else str(teacher_weights),
    )
    other = load_teacher(teacher, teacher_weights, len(source.classes), recipe.seed)
    preprocess = preprocess_for(
        module, None, mean=recipe.data.mean, std=recipe.data.std, input_size=source.image_size
    )
    feed = Feed(
        source, preprocess, recipe.data, seed=recipe.seed, device=target, trains=recipe.trains
    )
    baseline = copy.deepcopy(module).to(target).eval()
    _check_classes(baseline, source, names)
    hashes = InputHashes(
        hash_state(module), source.fingerprint, "" if other is None else hash_state(other)
    )
    return RunInputs(
        names=names,
        hashes=hashes,
        baseline=baseline,
        classes=source.classes,
        feed=feed,
        recipe=recipe,
        plan=plan,
        pick=pick or "",
        teacher=make_teacher(
            other,
            teacher_name or type(other).__name__,
            recipe,
            feed.preprocess,
            len(source.classes),
            normalised=source.train[0][0].is_floating_point(),
        ),
        progress=progress or Silent(),
        board=board,
    )


def as_device(name: str | None) -> torch.device:
    """The device of that name, by default CUDA where there is one. Raises UserError."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: try cpu") from error
    return device


def _trained(name: str, weights: str | Path | None, classes: int, seed: int) -> nn.Module:
    """Load a named model with as many classes as the data has, or as its weights have."""
    file = None if weights is None else Path(weights)
    try:
        return load_model(name, weights=file, num_classes=classes, seed=seed)
    except UserError:
        # Weights for other classes: `_check_classes` says so more plainly than a list of keys.
        try:
            return load_model(name, weights=file, seed=seed)
        except UserError:
            pass
        raise


def _open_source(data: Data, model: nn.Module, settings: DataSettings) -> Source:
    """Open the data; pictures are resized and cropped as the recipe says, else as the model does.

    Raises UserError: the recipe says how to crop, and to no size or images of the user's own.
    """
    fields = ("crop_pct", "crop_mode", "interpolation")
    given = {name: getattr(settings, name) for name in fields}
    said = next((f"data.{name}={value}" for name, value in given.items() if value), "")
    if isinstance(data, tuple):
        if said:
            raise UserError(f"{said} is for image files: crop in your loader's data set")
        return from_loaders(*data)
    resize = resize_for(model, input_size=settings.input_size, mean=settings.mean, **given)
    if said and resize is None:
        raise UserError(f"{said} crops to no size: set data.input_size, too")
    return open_source(str(data), input_size=resize)


def _check_classes(model: nn.Module, source: Source, names: InputNames) -> None:
    outputs = num_outputs(model, source.image_size)
    if outputs != len(source.classes):
        raise UserError(
            f"model '{names.model}' has {outputs} classes and data '{names.data}' "
            f"{len(source.classes)}: give a model made for these classes"
        )
