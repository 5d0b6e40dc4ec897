"""Kinds of a classifier's items: an image with its label, or samples with other inputs."""

import inspect
import logging
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from updp.blocks.modules import UserCodeError, call_user_code
from updp.blocks.nested import tensors_in
from updp.data.readers.items import IMAGES
from updp.data.readers.loader_items import Loader
from updp.data.readers.samples import as_tensors, only_sample
from updp.errors import UserError
from updp.tasks import Classification
from updp.tasks.base import LABELS

_log = logging.getLogger(__name__)


def argument_names(model: nn.Module) -> frozenset[str]:
    """Names of the arguments that a model's forward takes by keyword."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        given = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # for example of a scripted module
        return frozenset()
    return frozenset(parameter.name for parameter in given if parameter.kind in kinds)


def is_samples(given: Loader) -> bool:
    """Whether a classifier's data set holds samples other than images, such as text."""
    item, inputs = _first(given)
    if isinstance(inputs, Mapping):  # in a pair (inputs, label) they are inputs by keyword
        return not isinstance(item, Mapping) or not IMAGES & inputs.keys()
    if isinstance(inputs, tuple | list):
        return len(tensors_in(inputs)) == len(inputs) > 0
    if isinstance(inputs, Tensor):
        return inputs.ndim not in (0, 3)
    return False


def inputs_beside_image(
    given: Loader, split: str, arguments: frozenset[str]
) -> frozenset[str] | None:
    """Names of the entries of dictionary items that are inputs, if there are some beside an image.

    These are numbers under the name of one of the model's arguments. A warning lists pictures,
    tensors and arrays under other names, which the model does not get.

    Raises:
        UserError: the model has an argument for such an entry, but not for the image, or the image
            needs normalisation, which is available for images alone only.
    """
    item, inputs = _first(given)
    if not isinstance(item, Mapping) or not isinstance(inputs, Mapping):
        return None
    image = next((key for key in IMAGES if key in inputs), None)
    rest = {key: value for key, value in inputs.items() if key != image}
    further = [key for key, value in rest.items() if key in arguments and _is_numbers(value)]
    unknown = [
        key
        for key, value in rest.items()
        if key not in arguments
        and isinstance(value, Tensor | np.ndarray | Image.Image)
        and (isinstance(value, Image.Image) or value.ndim)
    ]
    if isinstance(item, Mapping) and not any(key in item for key in LABELS):
        _warn_of_other_labels(rest, arguments, split)
    if unknown:
        names = ", ".join(f"'{key}'" for key in unknown)
        _log.warning(
            "items of the %s loader hold %s beside '%s': ignored, for the model's forward takes "
            "no argument of that name",
            split,
            names,
            image,
        )
    if not further:
        return None
    if image not in arguments:
        raise UserError(
            f"items of the {split} loader hold '{further[0]}', an argument of the model's forward, "
            f"and '{image}', which is none: name all inputs as forward does"
        )
    if str(getattr(inputs[image], "dtype", "uint8")).endswith("uint8"):
        raise UserError(
            f"items of the {split} loader hold '{image}' as 8-bit pixels beside '{further[0]}': "
            "give it as floats that are normalised, for of several inputs none is changed"
        )
    return frozenset([image, *further])


def _warn_of_other_labels(
    entries: Mapping[str, Any], arguments: frozenset[str], split: str
) -> None:
    """Warn of whole numbers that may be the missing labels, such as `fine_label`."""
    numbers = [k for k, value in entries.items() if k not in arguments and _is_whole(value)]
    if numbers:
        _log.warning(
            "items of the %s loader have no label, and %s %s ignored: if that is the label, rename "
            "it to label",
            split,
            " and ".join(f"'{key}'" for key in numbers),
            "are" if len(numbers) > 1 else "is",
        )


def _is_whole(value: Any) -> bool:
    """Whether a value is a single whole number, like a class."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point()
    return isinstance(value, Integral) and not isinstance(value, bool)


def _first(given: Loader) -> tuple[Any, Any]:
    """The first item (or a batch of it), and its inputs; None for both if there is none."""
    whole: Any = given
    try:
        if isinstance(given, DataLoader) and given.collate_fn is not default_collate:
            batch = call_user_code(lambda: given.collate_fn([whole.dataset[0]]))
            return batch, only_sample(Classification().split(batch)[0], "")
        dataset = whole.dataset if isinstance(given, DataLoader) else whole
        item = call_user_code(lambda: dataset[0])
        return item, Classification().split(item)[0]
    except (UserCodeError, UserError):
        return None, None  # the image reader reports what is wrong


def _is_numbers(value: Any) -> bool:
    try:
        return isinstance(as_tensors(value, ""), Tensor)
    except (UserError, TypeError):
        return False
