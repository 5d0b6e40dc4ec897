"""The inputs of a run (model, data, teacher, device), opened and checked in one call."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from updp.blocks.modules import to_eval
from updp.data import (
    Loader,
    Source,
    from_loaders,
    match_classes,
    open_source,
    preprocess_for,
    resize_for,
    without_labels,
)
from updp.data.feed import Feed
from updp.errors import UserError
from updp.io import processes
from updp.io.progress import Progress, Silent
from updp.io.seeds import random_state
from updp.io.tracking import Board
from updp.models import (
    check_finite,
    hash_state,
    load_model,
    num_outputs,
    own_copy,
    read_shapes,
    weights_of,
)
from updp.models.teacher import BASELINE, load_teacher, make_teacher
from updp.plan import Plan
from updp.recipe import DataSettings, Recipe
from updp.run.input_checks import (
    check_labels_suffice,
    check_settings,
    guessed_colour,
    look_at,
)
from updp.run.unlabelled import open_further
from updp.search import SEARCHERS
from updp.stages.context import InputHashes, InputNames, RunInputs
from updp.tasks import Classification, Task, find_task

_log = logging.getLogger(__name__)

Data = str | Path | Loader | tuple[Loader, Loader]
Test = str | Path | Loader


@random_state()  # a user's data set may draw whenever an image is read
def open_inputs(
    model: nn.Module | str,
    data: Data,
    recipe: Recipe,
    *,
    test: Test | None = None,
    weights: str | Path | None = None,
    device: str | None = None,
    plan: Plan | None = None,
    pick: str | None = None,
    teacher: nn.Module | str | None = None,
    teacher_weights: str | Path | None = None,
    unlabelled: str | Path | None = None,
    tensorboard: str | Path | None = None,
    log: str | None = None,
    task: Task | str | None = None,
    progress: Progress | None = None,
    searches: bool = True,
    check: Callable[[nn.Module, Source], None] = lambda model, source: None,
) -> RunInputs:
    """Load the model and the teacher, open the data, and check that they fit together.

    Nothing is written, and a module of the user's is copied. The arguments are those of
    `updp.prune`. `searches` says that a plan will be searched for unless one is given; `check` may
    refuse model and data before any work.

    Raises:
        UserError: something is missing, unusable, or does not fit the rest.
    """
    # What can be refused at once comes first: loading models and data may take minutes.
    if searches and plan is None and pick is None:
        recipe.required_budget()
        SEARCHERS[recipe.search.searcher].check_installed()
    own_task = find_task(recipe.task if task is None else task)
    check_settings(own_task, recipe)
    target = as_device(device)
    processes.join(cuda=target.type == "cuda")
    if not processes.is_first():
        tensorboard = log = progress = None
    board = Board(tensorboard, log)
    if not isinstance(model, str):
        if weights is not None:
            raise UserError("weights are for a model given by name: load them into your module")
        module, name = own_copy(model), ""
        source = _open_source(data, test, module, recipe.data, own_task)
    else:
        name = model
        # Loaded twice: the model says its image size, and then the data its number of classes.
        blank = load_model(model, seed=recipe.seed)
        source = _open_source(data, test, blank, recipe.data, own_task)
        module = _trained(model, weights, blank, len(source.classes) or None, recipe.seed)
    teacher_name = teacher if isinstance(teacher, str) and teacher != BASELINE else ""
    names = InputNames(
        model=name,
        weights="" if weights is None else str(weights),
        data=str(data) if isinstance(data, str | Path) else "",
        test=str(test) if isinstance(test, str | Path) else "",
        teacher=teacher_name,
        teacher_weights="" if teacher_weights is None else str(teacher_weights),
        unlabelled="" if unlabelled is None else str(unlabelled),
    )
    check_finite(weights_of(module), names.the_model)
    if isinstance(own_task, Classification):
        shown = source.image_size if source.example is None else source.example
        outputs = num_outputs(module, shown)
        if outputs < 2:
            raise UserError(
                f"the model has {outputs} output: updp compares the probabilities of two classes "
                "or more, such as of two outputs (-x / 2, x / 2) in place of one; for numbers "
                "there is task=regression, for yes or no task=multi-label"
            )
        source = match_classes(source, outputs, model=names.the_model, data=names.the_data)
    check(module, source)
    check_labels_suffice(source, recipe, names.the_data, own_task)
    more, fingerprint = open_further(names, source, recipe)
    recipe = _with_loader_settings(recipe, source).model_copy(update={"task": own_task.name})
    other = load_teacher(teacher, teacher_weights, len(source.classes), recipe.seed)
    preprocess = None
    if len(source.image_size) == 3 and source.example is None:
        channels, height, width = source.image_size
        preprocess = preprocess_for(
            module,
            None,
            mean=recipe.data.mean,
            std=recipe.data.std,
            input_size=(channels, height, width),
        )
    sets_aside = recipe.sets_aside
    feed = Feed(
        source,
        preprocess,
        recipe.data,
        seed=recipe.seed,
        device=target,
        sets_aside=sets_aside,
        task=own_task,
    )
    baseline = to_eval(module.to(target))
    look_at(baseline, feed, source)
    if guessed := guessed_colour(baseline, name, feed, recipe):
        (progress or Silent()).say(guessed)
    hashes = InputHashes(
        hash_state(module),
        source.fingerprint,
        "" if other is None else hash_state(other),
        fingerprint,
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
            feed.preprocess if isinstance(own_task, Classification) else None,
            len(source.classes),
            normalised=feed.normalised,
        ),
        unlabelled=more,
        progress=progress or Silent(),
        board=board,
    )


def as_device(name: str | None) -> torch.device:
    """The device of that name, by default CUDA where there is one. Raises UserError.

    Of several processes on a machine each has the CUDA device of its own number.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and device.index is None and (number := processes.local_rank()):
            device = torch.device("cuda", number)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: try cpu") from error
    return device


def _trained(
    name: str, weights: str | Path | None, blank: nn.Module, classes: int | None, seed: int
) -> nn.Module:
    """Build a named model and load its weights, with the number of classes that fits both.

    The weights' own head decides; else `classes`, those of the data. None, of data without labels,
    leaves the model's default. `blank` is that default model, to compare shapes with.
    """
    if weights is None:
        if name.startswith(("timm/", "torchvision/")):  # a file's factory may load its own
            _log.warning(
                "%s is untrained, as nothing is downloaded: give --weights (in Python weights=)",
                name,
            )
        return load_model(name, num_classes=classes, seed=seed)
    file = Path(weights)
    if shapes := read_shapes(file, blank):
        own = {key: tuple(value.shape) for key, value in blank.state_dict().items()}
        shared = own.keys() & shapes.keys()
        # A head of other classes differs in its first dimension, and nothing else does.
        heads = {shapes[key][:1] for key in shared if shapes[key] != own[key]}
        if len(heads) == 1 and (head := heads.pop()):
            return load_model(name, weights=file, num_classes=head[0], seed=seed)
        if shared and not heads:
            return load_model(name, weights=file, seed=seed)
    return load_model(name, weights=file, num_classes=classes, seed=seed)


def _open_source(
    data: Data, test: Test | None, model: nn.Module, settings: DataSettings, task: Task
) -> Source:
    """Open the data; pictures are resized and cropped as the recipe says, else as the model does.

    Raises UserError: the recipe says how to crop, and to no size or images of the user's own.
    """
    fields = ("crop_pct", "crop_mode", "interpolation")
    given = {name: getattr(settings, name) for name in fields}
    said = next((f"data.{name}={value}" for name, value in given.items() if value), "")
    if isinstance(data, str | Path):
        resize = resize_for(model, input_size=settings.input_size, mean=settings.mean, **given)
        if said and resize is None:
            raise UserError(f"{said} crops to no size: set data.input_size, too")
        if not isinstance(test, str | Path | None):
            raise UserError(
                f"test is a {type(test).__name__} and data the path '{data}': give two paths, or "
                "two loaders"
            )
        source = open_source(
            str(data),
            input_size=resize,
            test=None if test is None else str(test),
            skip_corrupt=settings.skip_corrupt,
        )
        return source if isinstance(task, Classification) else without_labels(source)
    if said:
        raise UserError(f"{said} is for image files: crop in your loader's data set")
    train: Any = data
    if isinstance(data, tuple | list) and len(data) == 2:
        if test is not None:
            raise UserError("data is a pair with a test split, and test another: give one of them")
        train, test = data
    if isinstance(test, str | Path):
        raise UserError(f"test is the path '{test}' and data none: give two paths, or two loaders")
    if isinstance(train, tuple | list) or not hasattr(train, "__len__"):
        raise UserError(
            f"data is of the type {type(train).__name__}: give a name, a folder, a loader or data "
            "set, or a pair of these (training, test)"
        )
    return from_loaders(train, test, skip_corrupt=settings.skip_corrupt, task=task)


def _with_loader_settings(recipe: Recipe, source: Source) -> Recipe:
    """The recipe with the training loader's batch size and workers, where it has none itself."""
    given = {"batch_size": source.batch_size, "workers": source.workers}
    default, own = DataSettings(), recipe.data
    new = {
        name: value
        for name, value in given.items()
        if value and getattr(own, name) == getattr(default, name)
    }
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=new)})
