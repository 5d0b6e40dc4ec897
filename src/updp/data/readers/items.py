"""Items of a user's data set: how each type of image and label is read.

====================== =============================================================================
an item                a pair (image, label), or a dictionary with `pixel_values`, `image` or `img`,
                       and one of `LABELS`; without label, or with None, an image alone
Pillow image           as an image file: `L` or `RGB`, uint8
uint8                  pixels; updp normalises them
uint16                 pixels of 65,536 levels: the upper 8 bits are kept, as of files
floats of 16 to 64 bit normalised already; becomes float32
other types            refused: their range is not known
shape                  (C, H, W), or (H, W, C) where only the last axis has at most 4; where both
                       ends have, tensors are (C, H, W) and NumPy arrays (H, W, C); a NumPy array
                       (H, W) is grey
label                  a whole number: Python's, NumPy's or a tensor with one element; of other
                       tasks than classification a picture, too, whose stored numbers are the labels
====================== =============================================================================
"""

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from updp.data.decoding import to_eight_bits
from updp.data.images import MOST_CLASSES
from updp.errors import UserError
from updp.tasks.base import LABELS

IMAGES = dict.fromkeys(("pixel_values", "image", "img")).keys()  # the first key found counts
_MOST_CHANNELS = 4  # a first axis larger than this is the height, and channels are last


def split_item(item: object, where: str) -> tuple[Any, Any]:
    """Image and label (None if missing) of a data set's item; `where` names it in errors.

    Raises:
        UserError: the item is neither a pair, nor a dictionary with an image, nor an image.
    """
    if isinstance(item, Image.Image | Tensor | np.ndarray):
        return item, None
    if isinstance(item, tuple | list) and len(item) in (1, 2):
        return item[0], item[1] if len(item) == 2 else None
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGES if key in item), None)
        label = next((item[key] for key in LABELS if key in item), None)
        if image is not None:
            return image, label
    raise _unlike(item, where)


def as_image(value: object, where: str) -> Tensor:
    """A data set's image as uint8 or float32 (C, H, W), by the table above.

    Raises:
        UserError: the image has another type or shape.
    """
    if isinstance(value, Image.Image):
        value = np.array(to_eight_bits(value, where))
    last = isinstance(value, np.ndarray)
    if isinstance(value, np.ndarray):
        if value.ndim == 2:
            value = value[..., None]
        native = value.dtype.newbyteorder("=")
        try:
            value = torch.from_numpy(np.ascontiguousarray(value, native))
        except TypeError as error:
            raise _unlike(value, where) from error
    if not isinstance(value, Tensor) or value.ndim != 3:
        raise _unlike(value, where)
    if value.is_meta or value.layout != torch.strided:
        kind = "on the device meta, without values" if value.is_meta else "sparse"
        raise UserError(f"{where} is a tensor that is {kind}: give a dense one on the CPU")
    first_few, last_few = (value.shape[axis] <= _MOST_CHANNELS for axis in (0, 2))
    if last_few and (last or not first_few):
        value = value.permute(2, 0, 1)
    if value.dtype == torch.uint16:  # torch has few operations on it
        value = (value.to(torch.int32) >> 8).to(torch.uint8)
    if value.dtype != torch.uint8 and not value.is_floating_point():
        raise UserError(
            f"{where} is {str(value.dtype).removeprefix('torch.')}, whose range is not known: give "
            "uint8 (0 to 255), uint16 (0 to 65,535) or floats that are normalised"
        )
    value = value.detach().as_subclass(Tensor)
    if value.is_floating_point():
        value = value.float()
        if not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise UserError(
                f"{where} has {count} of {value.numel()} values that are NaN or infinite: mend it, "
                "or leave it out with data.skip_corrupt=true"
            )
    return value.contiguous()


def as_label_picture(picture: Image.Image, where: str) -> Tensor:
    """The numbers stored in a picture of labels, (1, H, W); colour is (3, H, W), as in images.

    For a palette they are its indices, for two colours 0 and 1. Nothing is scaled.
    """
    if picture.mode in ("1", "L", "P", "PA", "I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        values = values[..., 0] if values.ndim == 3 else values  # without the palette's alpha
        # torch has few operations on unsigned 16 bits, and none on foreign byte orders.
        kinds = {"b": np.uint8, "f": np.float32}
        kind = np.uint8 if values.dtype == np.uint8 else kinds.get(values.dtype.kind, np.int32)
        return torch.from_numpy(values.astype(kind))[None]
    return as_image(picture, where)


def as_label(value: object, where: str) -> int:
    """A data set's label as an index of the model's outputs.

    Raises:
        UserError: the label is not a whole number of at least 0.
    """
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if math.prod(value.shape) != 1:
            raise UserError(
                f"{where} has a label of shape {tuple(value.shape)}: labels are class indices, of "
                "one-hot or soft labels label.argmax()"
            )
        value = value.item()
    if not isinstance(value, Integral):
        shown = f"{value:g}" if isinstance(value, float) else repr(value)
        raise UserError(
            f"{where} has the label {shown} ({type(value).__name__}): "
            "labels are class indices, whole numbers from 0 on"
        )
    if int(value) < 0:
        raise UserError(f"{where} has the label {value}: class indices start at 0")
    if int(value) >= MOST_CLASSES:
        raise UserError(f"{where} has the label {value}: class indices are below {MOST_CLASSES}")
    return int(value)


def describe(value: object) -> str:
    """Type and shape of an item, such as `(tensor (3, 8, 8), int)`."""
    if isinstance(value, tuple | list):
        return f"({', '.join(describe(part) for part in value)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {describe(part)}' for key, part in value.items())}}}"
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else f"array of {value.dtype}"
        return f"{kind} {tuple(value.shape)}"
    return type(value).__name__


def _unlike(value: object, where: str) -> UserError:
    return UserError(
        f"{where} is {describe(value)}: updp reads pairs (image, label) or dictionaries with "
        "pixel_values or image, and label, or images alone, where an image is a tensor (C, H, W), "
        "a NumPy array or a Pillow image"
    )
