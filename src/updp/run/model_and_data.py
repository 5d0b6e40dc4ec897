"""Open the model of a run together with its data, because each depends on the other."""

import logging
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from updp.data import Source, from_loaders, open_source, resize_for, without_labels
from updp.data.readers.item_kinds import argument_names
from updp.errors import UserError
from updp.models import load_model, own_copy, read_shapes
from updp.recipe import DataSettings, Recipe
from updp.run.given import Data, Given, Test
from updp.tasks import Classification, Task

_log = logging.getLogger(__name__)


def open_model_and_data(
    given: Given, recipe: Recipe, task: Task
) -> tuple[nn.Module, int | None, Source]:
    """The model (a copy of the user's module, or built by name), and its data. Raises UserError.

    A named model is built twice: first to learn its image size, which opens the data, then with the
    data's number of classes. This is the second value; None for the model's own default.
    """
    model, weights = given.model, given.weights
    if isinstance(model, str):
        blank = load_model(model, seed=recipe.seed)
        source = _open_source(given.data, given.test, blank, recipe.data, task)
        classes = _classes_of(weights, blank, len(source.classes) or None)
        return _build(model, weights, classes, recipe.seed), classes, source
    if weights is not None:
        raise UserError("weights are for a model given by name: load them into your module")
    module = own_copy(model)
    return module, None, _open_source(given.data, given.test, module, recipe.data, task)


def _classes_of(weights: str | Path | None, blank: nn.Module, classes: int | None) -> int | None:
    """Number of classes with which a named model fits its weights and the data.

    The head in the weights file decides; else `classes`, the number in the data. None (data without
    labels) means the model's default. `blank` is the default model, to compare shapes with.
    """
    if weights is not None and (shapes := read_shapes(Path(weights), blank)):
        own = {key: tuple(value.shape) for key, value in blank.state_dict().items()}
        shared = own.keys() & shapes.keys()
        # A head for other classes differs in its first dimension; nothing else may differ.
        heads = {shapes[key][:1] for key in shared if shapes[key] != own[key]}
        if len(heads) == 1 and (head := heads.pop()):
            return head[0]
        if shared and not heads:
            return None
    return classes


def _build(name: str, weights: str | Path | None, classes: int | None, seed: int) -> nn.Module:
    # A factory in a file may load weights itself.
    if weights is None and name.startswith(("timm/", "torchvision/")):
        _log.warning(
            "%s is untrained, as nothing is downloaded: give --weights (in Python weights=)", name
        )
    file = None if weights is None else Path(weights)
    return load_model(name, weights=file, num_classes=classes, seed=seed)


def _open_source(
    data: Data, test: Test | None, model: nn.Module, settings: DataSettings, task: Task
) -> Source:
    """Open the data; pictures are resized and cropped as the recipe says, else as the model does.

    Raises UserError if the recipe sets a crop without a size, or for a user's own loaders.
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
    if joined := _how_to_join(train, test):
        raise UserError(
            "data is a pair of arrays or lists, and would be (training, test): join images and "
            f"labels by {joined}, and give two of those, or one alone"
        )
    if isinstance(train, tuple) or not hasattr(train, "__len__"):  # a list is a data set
        raise UserError(
            f"data is of the type {type(train).__name__}: give a name, a folder, a loader or data "
            "set, or a pair of these (training, test)"
        )
    return from_loaders(
        train,
        test,
        skip_corrupt=settings.skip_corrupt,
        task=task,
        arguments=argument_names(model),
    )


def _how_to_join(train: Any, test: Any) -> str:
    """An expression to join images and labels that were given as two data sets, else empty."""
    if isinstance(train, Tensor | np.ndarray) and isinstance(test, Tensor | np.ndarray):
        return "torch.utils.data.TensorDataset(images, labels)"
    image, label = _first(train), _first(test)
    # Items of the first that are tuples have labels of their own.
    apart = image is not None and not isinstance(image, tuple) and not _is_number(image)
    return "list(zip(images, labels))" if apart and _is_number(label) else ""


def _first(data: Any) -> Any:
    """First item of an array or a list; None where there is none."""
    if isinstance(data, Tensor | np.ndarray):
        return data[0] if data.ndim and len(data) else None
    return data[0] if isinstance(data, tuple | list) and data else None


def _is_number(item: Any) -> bool:
    return isinstance(item, Number) or (isinstance(item, Tensor) and not item.ndim)
