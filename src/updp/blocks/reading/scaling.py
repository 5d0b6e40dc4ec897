"""Scale values to another number of samples, from two runs of the model that show the growth."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from updp.blocks.nested import map_leaves

_UNEVEN = "what it is given does not grow evenly with the number of samples"
_LEAVES = (Tensor, bool, int, float)
Number = TypeVar("Number", int, float)


class NotScalable(Exception):
    """A site's inputs for some number of samples are not known; the text says why."""


def scaled(value: Any, larger: Any, more: int) -> Any:
    """The value for `more` further samples (may be negative); `larger` is for one further sample.

    Sizes that differ are extrapolated linearly, with a tensor's entries repeated, and so are
    numbers. Everything else stays as it is. Tensors in tuples, lists, dictionaries and dataclasses
    are new ones.

    Raises:
        NotScalable: the value does not grow linearly.

    >>> scaled((12, torch.zeros(2, 5)), (18, torch.zeros(3, 5)), 30)[0]
    192
    """
    leaves, others = _leaves(value), _leaves(larger)
    if len(leaves) != len(others):
        raise NotScalable(_UNEVEN)
    found = iter([_scaled_leaf(*pair, more) for pair in zip(leaves, others, strict=True)])
    return map_leaves(_LEAVES, lambda _: next(found), value)


def scaled_sizes(sizes: Sequence[int], larger: Sequence[int], more: int) -> tuple[int, ...]:
    """The sizes of a tensor for `more` further samples.

    Raises:
        NotScalable: the sizes do not grow linearly, or grow from or to zero.
    """
    if len(sizes) != len(larger):
        raise NotScalable(_UNEVEN)
    found = tuple(_line(*pair, more) for pair in zip(sizes, larger, strict=True))
    if any(a != b and 0 in (a, b) for a, b in zip(sizes, found, strict=True)):
        raise NotScalable(_UNEVEN)
    return found


def _leaves(value: Any) -> list[Any]:
    found: list[Any] = []

    def note(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    map_leaves(_LEAVES, note, value)
    return found


def _scaled_leaf(value: Any, larger: Any, more: int) -> Any:
    if isinstance(value, Tensor) and isinstance(larger, Tensor):
        return _scaled_tensor(value, larger, more)
    if type(value) is not type(larger) or (isinstance(value, bool) and value != larger):
        raise NotScalable(_UNEVEN)
    return value if value == larger else _line(value, larger, more)


def _scaled_tensor(value: Tensor, larger: Tensor, more: int) -> Tensor:
    if value.is_nested or larger.is_nested:
        raise NotScalable("it is given a nested tensor")
    sizes = scaled_sizes(value.shape, larger.shape, more)
    # Whole numbers may index another tensor, so that they cannot be made up for another batch.
    is_whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    if is_whole and not _repeated(value, larger.shape).equal(larger):
        raise NotScalable("it is given whole numbers that are others for each number of samples")
    return _repeated(value, sizes)


def _repeated(value: Tensor, sizes: Sequence[int]) -> Tensor:
    """A copy with these sizes: the entries along each axis are repeated or cut off."""
    for axis, size in enumerate(sizes):
        if size != value.shape[axis]:
            places = torch.arange(size, device=value.device) % value.shape[axis]
            value = value.index_select(axis, places)
    return value.clone()


def _line(value: Number, larger: Number, more: int) -> Number:
    found = value + (larger - value) * more
    if found < 0 <= value:
        raise NotScalable(_UNEVEN)
    return found
