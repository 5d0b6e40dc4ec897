"""Example inputs of a model: to trace and time it, and to reopen its run without the data."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from updp.blocks.modules import seeded_input
from updp.blocks.nested import (
    Samples,
    count,
    from_structure,
    map_tensors,
    named_leaves,
    named_tensors,
    structure_of,
    take,
    tensors_in,
)
from updp.errors import DamagedError, UserError
from updp.io.files import content_of, read_tensors, write_tensors

_log = logging.getLogger(__name__)

FILE = "example.safetensors"  # in the folder of stage `sites`, if there are real inputs


def make_example(stored: Samples | None, shape: tuple[int, ...], size: int) -> Samples:
    """Make `size` inputs: the real ones in `stored`, repeated as needed, or seeded random ones.

    Real inputs are needed if the numbers have a meaning, as in tokens and masks. `shape` is that of
    one random image, such as (C, H, W).
    """
    if stored is None:
        return seeded_input((size, *shape))
    repeats: Samples = take(stored, torch.arange(size) % count(stored))
    return repeats


def write_example(folder: Path, stored: Samples | None) -> None:
    """Write real inputs, if there are any, into a folder."""
    if stored is not None:
        tensors = {name: x.contiguous().clone() for name, x in named_tensors(stored)}
        write_tensors(folder / FILE, tensors, structure_of(stored))


def read_example(folder: Path) -> Samples | None:
    """The inputs that `write_example` wrote, or None. Raises UserError if they are damaged."""
    path = folder / FILE
    if not path.exists():
        return None
    tensors, structure = read_tensors(path)
    if structure is None:
        raise DamagedError(path, "is of an earlier version of updp")
    with content_of(path):
        stored: Samples = from_structure(structure, tensors)
        return stored


def stand_in(stored: Samples, size: int) -> Samples:
    """At most `size` artificial inputs that may be published instead of the real ones.

    Numbers are drawn at random from the range of the real ones; masks, only of 0 and 1, are kept.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(x: Tensor) -> Tensor:
        if x.dtype == torch.bool or ((x == 0) | (x == 1)).all():
            return x
        if x.is_complex():
            return torch.randn(x.shape, dtype=x.dtype, generator=generator)
        low, high = x.min().item(), x.max().item()
        if not x.is_floating_point():
            return torch.randint(int(low), int(high) + 1, x.shape, generator=generator).to(x.dtype)
        return (low + (high - low) * torch.rand(x.shape, generator=generator)).to(x.dtype)

    some: Samples = take(map_tensors(drawn, stored), slice(size))
    return some


def check_example(example: Samples, kind: str) -> None:
    """Raise UserError for an unusable example; `kind` is the name of its type for messages."""
    tensors = tensors_in(example)
    if not tensors:
        raise UserError(f"the example holds no tensor, but is of the type {kind}")
    _check_samples(example)
    if not count(example):
        raise UserError("the example holds no sample: its first axis has length 0")
    if not all(x.isfinite().all() for x in tensors if x.is_floating_point()):
        raise UserError("the example has values that are NaN or infinite")


def _check_samples(example: Samples) -> None:
    """Raise UserError if a tensor or list does not have one entry per sample; names it."""
    sizes: dict[str, int] = {}
    for path, part in named_leaves((Tensor, list), example):
        name = path.removeprefix("args.").removeprefix("kwargs.")
        is_list = isinstance(part, list)
        sizes[name] = len(part) if is_list or part.ndim else -1
        first, expected = next(iter(sizes.items()))
        if sizes[name] < 0 or sizes[name] != expected:
            what = f"{len(part)} entries" if is_list else f"the shape {tuple(part.shape)}"
            place = f" in '{name}'" if name else ""
            beside = f" beside {expected} samples in '{first}'" if expected >= 0 else ""
            raise UserError(
                f"the example has {what}{place}{beside}: let the first axis of each tensor be "
                "the batch"
            )


def warn_of_idle_masks(example: Samples) -> None:
    """Warn of masks that hide nothing in the samples on which a model is traced.

    A model may skip such a mask (transformers' do), and the pruned blocks then ignore masks.
    Masks are found by name: `..._mask` (N, T) of whole numbers or booleans, where 0 hides a
    position; if the name contains `padding`, 1 hides it.
    """
    if isinstance(example, Tensor):
        return
    for name, value in example.kwargs.items():
        is_mask = isinstance(value, Tensor) and name.endswith("mask") and value.ndim == 2
        if not is_mask or value.is_floating_point():
            continue
        if bool((value.bool() == ("padding" not in name)).all()):
            _log.warning(
                "`%s` hides nothing in the first samples, on which the model is traced: what "
                "becomes smaller may not read it later; let the first samples be padded where "
                "others are",
                name,
            )
