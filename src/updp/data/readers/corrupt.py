"""`data.skip_corrupt`: images that cannot be read are left out when the data is opened."""

import logging
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from updp.errors import UserError

_log = logging.getLogger(__name__)


def error_of(read: Callable[[int], object], index: int) -> str:
    """Reason why an image cannot be read; empty if it can be."""
    try:
        read(index)
    except UserError as error:
        return str(error).rpartition(": ")[0]  # without the advice at its end
    return ""


def readable(errors: Iterable[str], split: str) -> NDArray[np.int64]:
    """Indices of the images without an error; a warning counts the others and quotes the first.

    Raises UserError if no image can be read.
    """
    found = list(errors)
    kept = np.array([index for index, error in enumerate(found) if not error], np.int64)
    if len(kept) == len(found):
        return kept
    first = next(error for error in found if error)
    if not len(kept):
        raise UserError(f"none of the {len(found)} images of {split} can be read: {first}")
    _log.warning(
        "%d of %d images of %s are skipped (data.skip_corrupt), the first of them as %s",
        len(found) - len(kept),
        len(found),
        split,
        first,
    )
    return kept
