"""The inputs of a run (model, data, teacher, device), opened and checked in one call."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from updp.blocks.modules import to_eval
from updp.data import Preprocess, Source, match_classes, preprocess_for
from updp.data.example import warn_of_idle_masks
from updp.data.feed import Feed
from updp.errors import UserError
from updp.io import processes
from updp.io.progress import Progress, Silent
from updp.io.seeds import random_state
from updp.io.tracking import Board
from updp.models import check_finite, hash_frozen, hash_state, num_outputs, weights_of
from updp.models.teacher import load_teacher, make_teacher
from updp.plan import Plan
from updp.recipe import DataSettings, Recipe
from updp.run.given import Given
from updp.run.input_checks import (
    check_baseline_outputs,
    check_labels_suffice,
    check_mixing,
    check_settings,
    guessed_colour,
)
from updp.run.model_and_data import open_model_and_data
from updp.run.unlabelled import open_unlabelled_images
from updp.search import SEARCHERS
from updp.stages.context import InputHashes, InputNames, RunInputs
from updp.tasks import Classification, find_task


@random_state()  # a user's data set may draw random numbers whenever an image is read
def open_inputs(
    given: Given,
    recipe: Recipe,
    *,
    device: str | torch.device | None = None,
    plan: Plan | None = None,
    pick: str | None = None,
    tensorboard: str | Path | None = None,
    log: str | None = None,
    progress: Progress | None = None,
    searches: bool = True,
    check: Callable[[nn.Module, Source], None] = lambda model, source: None,
) -> RunInputs:
    """Load the model and the teacher, open the data, and check that they fit together.

    Nothing is written, and a module of the user's is copied.

    Args:
        given: the model, the data and what belongs to them.
        recipe: the settings.
        device: by default CUDA where there is one.
        plan: takes the place of a search.
        pick: another point of the finished search.
        tensorboard: a folder for curves.
        log: a tracker for curves.
        progress: where to report to.
        searches: a plan will be searched for, unless one is given or picked.
        check: may refuse model and data before any work.

    Raises:
        UserError: something is missing, unusable, or does not fit the rest.
    """
    # Quick checks come first: loading models and data may take minutes.
    if searches and plan is None and pick is None:
        recipe.required_budget()
        SEARCHERS[recipe.search.searcher].check_installed()
    task = find_task(recipe.task if given.task is None else given.task)
    check_settings(task, recipe)
    target = pruning_device(device)
    processes.join(cuda=target.type == "cuda")
    if not processes.is_first():
        tensorboard = log = progress = None
    board = Board(tensorboard, log)
    names = given.names
    module, num_classes, source = open_model_and_data(given, recipe, task)
    check_finite(weights_of(module), names.the_model)
    if isinstance(task, Classification):
        source = _of_the_models_classes(source, module, names)
    check(module, source)
    check_mixing(source, recipe)
    check_labels_suffice(source, recipe, names.the_data, task)
    more, fingerprint = open_unlabelled_images(names, source, recipe)
    recipe = _with_loader_settings(recipe, source).model_copy(update={"task": task.name})
    other = load_teacher(given.teacher, given.teacher_weights, len(source.classes), recipe.seed)
    feed = Feed(
        source,
        _preprocess(module, source, recipe.data),
        recipe.data,
        seed=recipe.seed,
        device=target,
        sets_aside=recipe.sets_aside,
        task=task,
    )
    baseline = to_eval(module.to(target))
    check_baseline_outputs(baseline, feed, source)
    warn_of_idle_masks(feed.example(2))
    if guessed := guessed_colour(baseline, names.model, feed, recipe):
        (progress or Silent()).say(guessed)
    hashes = InputHashes(
        hash_state(module),
        source.fingerprint,
        "" if other is None else hash_state(other),
        fingerprint,
        hash_frozen(module),
    )
    return RunInputs(
        names=names,
        hashes=hashes,
        baseline=baseline,
        num_classes=num_classes,
        classes=source.classes,
        feed=feed,
        recipe=recipe,
        plan=plan,
        pick=pick or "",
        teacher=make_teacher(
            other,
            names.teacher or type(other).__name__,
            recipe,
            feed.preprocess if isinstance(task, Classification) else None,
            len(source.classes),
            normalised=feed.normalised,
        ),
        unlabelled=more,
        progress=progress or Silent(),
        board=board,
    )


def as_device(name: str | torch.device | None) -> torch.device:
    """The device with this name, by default CUDA if available. Raises UserError.

    It also becomes the current device, within `standard_torch_state`. Each of several processes on
    a machine gets the CUDA device with its own number.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and device.index is None and (number := processes.local_rank()):
            device = torch.device("cuda", number)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # timers synchronise with the current device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' cannot be used here: try cpu") from error
    return device


def pruning_device(name: str | torch.device | None) -> torch.device:
    """Like `as_device`, but the device must also support float64. Raises UserError."""
    device = as_device(name)
    if device.type == "mps":
        raise UserError(
            f"device '{name}' has no float64, in which fits and checks compute: take cpu; the "
            "pruned model runs on mps as the model did"
        )
    return device


def _of_the_models_classes(source: Source, model: nn.Module, names: InputNames) -> Source:
    """Match the data's classes with the model's. Raises UserError if they do not fit."""
    outputs = num_outputs(model, source.image_size if source.example is None else source.example)
    if outputs < 2:
        raise UserError(
            f"the model has {outputs} output: updp compares the probabilities of two classes "
            "or more, such as of two outputs (-x / 2, x / 2) in place of one; for numbers "
            "there is task=regression, for yes or no task=multi-label"
        )
    return match_classes(source, outputs, model=names.the_model, data=names.the_data)


def _preprocess(model: nn.Module, source: Source, settings: DataSettings) -> Preprocess | None:
    """Normalisation of images (C, H, W) by recipe or model; None for other data."""
    if not source.has_images:
        return None
    channels, height, width = source.image_size
    return preprocess_for(
        model,
        None,
        mean=settings.mean,
        std=settings.std,
        input_size=(channels, height, width),
    )


def _with_loader_settings(recipe: Recipe, source: Source) -> Recipe:
    """The recipe with the training loader's batch size and workers where it sets none itself."""
    given = {"batch_size": source.batch_size, "workers": source.workers}
    said = recipe.data.model_fields_set
    new = {name: value for name, value in given.items() if value and name not in said}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=new)})
