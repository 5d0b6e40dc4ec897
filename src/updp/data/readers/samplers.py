"""Settings of a `DataLoader` apart from its data set: sampler, collate_fn, batch size, workers."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from updp.errors import UserError, reason
from updp.io.seeds import random_state

_log = logging.getLogger(__name__)

_REPEATED = 10  # number of passes over the data set after which a sampler counts as endless


@dataclass(frozen=True)
class LoaderSettings:
    """The parts of a loader that are used; None for those that are not given.

    `indices` are the items that the sampler selects, ascending; `collate` makes a batch from a list
    of items.
    """

    indices: NDArray[np.int64]
    collate: Callable[[list[Any]], Any] | None = None
    batch_size: int | None = None
    workers: int | None = None


def settings_of(given: Any, name: str) -> LoaderSettings:
    """Read a loader's settings; a data set has none. A warning names what cannot be used.

    Training has its own order, a function of the seed, so only a sampler's indices are used.

    Raises:
        UserError: the loader has no batches, or its sampler fails.
    """
    if not isinstance(given, DataLoader):
        return LoaderSettings(np.arange(len(given)))
    if given.worker_init_fn is not None:
        _log.warning("%s has a worker_init_fn, which is not called: updp seeds its workers", name)
    count = len(given.dataset)  # type: ignore[arg-type]
    batches: Any = given.batch_sampler
    sampler: Any = given.sampler
    batch_size = given.batch_size
    if type(batches) is BatchSampler:
        sampler, batch_size = batches.sampler, batches.batch_size
    elif batches is not None:
        _log.warning(
            "%s has a %s, whose batches are not kept together: its images are used, in batches of "
            "updp's own (data.batch_size)",
            name,
            type(batches).__name__,
        )
        sampler = _Flat(batches)
    # Without batches there is nothing for the `collate_fn` to join.
    joins = batches is not None and given.collate_fn is not default_collate
    return LoaderSettings(
        indices=_indices(sampler, count, name),
        collate=given.collate_fn if joins else None,
        # Batches of one image, the default of torch's loader, are useless for training.
        batch_size=batch_size if batch_size is not None and batch_size > 1 else None,
        workers=given.num_workers,
    )


class _Flat:
    """Iterates over the items of a batch sampler, one after another."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return (index for batch in self.batches for index in batch)


def _indices(sampler: Any, count: int, name: str) -> NDArray[np.int64]:
    """Indices selected by a sampler, ascending, for a data set of `count` items."""
    kind = type(sampler).__name__
    # A DistributedSampler has one process's part, but updp divides the images itself.
    if type(sampler) in (SequentialSampler, DistributedSampler):
        return np.arange(count)
    if type(sampler) is RandomSampler:
        if sampler.replacement or sampler.num_samples != count:
            _log.warning(
                "%s's RandomSampler draws %d of %d images: all are used, each once in an epoch",
                name,
                sampler.num_samples,
                count,
            )
        return np.arange(count)
    if type(sampler) is WeightedRandomSampler:
        _log.warning(
            "%s's WeightedRandomSampler draws by weight: its images are used, each once in an "
            "epoch, without weights",
            name,
        )
        return np.flatnonzero(np.asarray(sampler.weights))
    if type(sampler) is SubsetRandomSampler:
        given = [int(index) for index in sampler.indices]
    else:
        given = _drawn(sampler, _REPEATED * count, name)
    indices = np.unique(np.asarray(given, np.int64))
    if len(indices) < len(given):
        _log.warning(
            "%s's %s repeats images: each of its %d is used once in an epoch",
            name,
            kind,
            len(indices),
        )
    if len(indices) and not 0 <= indices[0] <= indices[-1] < count:
        wrong = indices[0] if indices[0] < 0 else indices[-1]
        raise UserError(f"{name}'s {kind} gives index {wrong}, its data set has {count} items")
    return indices


def _drawn(sampler: Any, limit: int, name: str) -> list[int]:
    """All indices of one pass; the state of the sampler's generator, if any, is restored."""
    kind, own = type(sampler).__name__, getattr(sampler, "generator", None)
    generator = own if isinstance(own, torch.Generator) else torch.Generator()
    state = generator.get_state()
    try:
        with random_state(0):
            generator.manual_seed(0)
            given = [int(index) for index in islice(sampler, limit + 1)]
    except Exception as error:  # user code may raise any exception
        raise UserError(f"{name}'s {kind} fails: {reason(error)}") from error
    finally:
        generator.set_state(state)
    if len(given) > limit:
        raise UserError(f"{name}'s {kind} does not end: give one that ends after an epoch")
    return given
