"""Batches in an order that a killed run can resume."""

import copy
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from updp.blocks.nested import Samples
from updp.data.images import Images
from updp.data.order import shuffled
from updp.errors import UserError
from updp.io import processes
from updp.io.seeds import mix, random_state, set_seed

Batch = tuple[Samples, Any]  # images (N, C, H, W) and labels (N,), or other inputs and labels


class Batches:
    """Batches of `images[indices]` (None: all), in a new order every epoch if `shuffle` is set.

    The order, and random numbers drawn while images are read, are pure functions of (seed, epoch,
    index), for any number of workers; no global random state is touched. Images stored in groups
    (`Images.groups`) are shuffled within a few groups at a time, see `order`. A short last batch is
    kept without shuffling; with shuffling it is dropped unless it is the only one.

    Several processes share each batch if `shuffle` is set, so that all take the same steps. Without
    `shuffle` they take turns at the batches if `shared` is set; else each reads all batches.

    Args:
        repeats: repeated augmentation (Hoffer et al., *Augment your batch*, 2020): each image comes
            this many times in a row, and an epoch has correspondingly fewer images.
        num_workers: number of processes that read ahead.
        pin_memory: put batches into page-locked memory, from which copies to CUDA do not block.
    """

    def __init__(
        self,
        images: Images,
        indices: Tensor | None,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        repeats: int = 1,
        shared: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} must be at least 1")
        self.indices = (torch.arange(len(images)) if indices is None else indices).numpy()
        if not len(self.indices):
            raise UserError("there are no images to make batches of")
        self.images, self.batch_size, self.repeats = images, batch_size, repeats
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.seed, self.shuffle, self.shared = seed, shuffle, shared
        if shuffle and min(batch_size, len(self.indices)) < processes.count():
            raise UserError(
                f"{processes.count()} processes cannot share a batch of "
                f"{min(batch_size, len(self.indices))} images: start fewer"
            )

    def of_size(self, batch_size: int) -> "Batches":
        """The same images in batches of size `batch_size`."""
        other = copy.copy(self)
        other.batch_size = batch_size
        return other

    def __len__(self) -> int:
        """Steps per epoch."""
        full, rest = divmod(len(self.indices), self.batch_size)
        return max(full, 1) if self.shuffle else full + (rest > 0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of an epoch."""
        items = self._items(epoch, start)
        return self._load((own for _, own in processes.share(items)) if self.shared else items)

    def endless(self, step: int) -> Iterator[Batch]:
        """Batches from `step` on, over all epochs; the workers stay alive and read ahead."""
        first, start = divmod(step, len(self))
        return self._load(
            items
            for epoch in count(first)
            for items in self._items(epoch, start if epoch == first else 0)
        )

    def _items(self, epoch: int, start: int) -> "Iterator[list[_Item]]":
        order = self.indices
        if self.shuffle:
            rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            order = shuffled(order, self.images.groups, rng)
        order = np.repeat(order, self.repeats)[: len(order)]
        size = self.batch_size
        for first in range(start * size, len(self) * size, size):
            part = order[first : first + size].tolist()
            items = [_Item(x, epoch, (first + i) % self.repeats) for i, x in enumerate(part)]
            yield self._share_of(items) if self.shuffle else items

    def _share_of(self, batch: "list[_Item]") -> "list[_Item]":
        """This process's images of a training batch: as many as every other process has."""
        each = len(batch) // processes.count()
        return batch[each * processes.rank() :][:each]

    def _load(self, items: "Iterable[list[_Item]]") -> Iterator[Batch]:
        loader = DataLoader(
            _SeededItems(self.images, self.seed),
            batch_sampler=items,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            collate_fn=partial(_collate, self.images),
            # Without a generator the loader draws a seed for its workers from torch's global state.
            generator=torch.Generator().manual_seed(self.seed),
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Item(NamedTuple):
    """One reading of an image."""

    image: int  # its index
    epoch: int
    repeat: int  # number of the reading within its epoch


class _SeededItems(Dataset[Any]):
    """Reads a batch of items, each in a random state that is a function of the seed and the item.

    This object is copied into the loader's workers.
    """

    def __init__(self, images: Images, seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitems__(self, items: list[_Item]) -> "list[tuple[Any, Any]] | UserError":
        """Images and labels, or the error itself, because a worker would add its own traceback."""
        try:
            if not self.images.draws:
                return [self.images[item.image] for item in items]
            with random_state():
                return [self._drawn(item) for item in items]
        except UserError as error:
            return error

    def _drawn(self, item: _Item) -> tuple[Any, Any]:
        set_seed(mix(self.seed, 5, item.epoch, item.image, item.repeat))
        return self.images[item.image]


def _collate(images: Images, items: "list[tuple[Any, Any]] | UserError") -> "Batch | UserError":
    try:
        return items if isinstance(items, UserError) else images.collate(items)
    except UserError as error:  # a worker would add its own traceback
        return error
