"""Batches in an order that a killed run can resume."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from updp.errors import UserError


class Batches:
    """Batches of `dataset[indices]` (None: all), in a new order every epoch if `shuffle` is set.

    The order is a pure function of (seed, epoch); no global random state is touched. A short last
    batch is kept, or when shuffling dropped unless it is the only one.
    """

    def __init__(
        self,
        dataset: Dataset[tuple[Tensor, int]],
        indices: Tensor | None,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        num_workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} must be at least 1")
        everything = torch.arange(len(dataset))  # type: ignore[arg-type]
        self.indices = (everything if indices is None else indices).numpy()
        if not len(self.indices):
            raise UserError("there are no images to make batches of")
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers
        self.seed, self.shuffle = seed, shuffle

    def __len__(self) -> int:
        """Steps per epoch."""
        full, rest = divmod(len(self.indices), self.batch_size)
        return max(full, 1) if self.shuffle else full + (rest > 0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches `start`, `start + 1`, ... of an epoch: images (N, C, H, W) and labels (N,)."""
        order = self.indices
        if self.shuffle:
            order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(order)
        size = self.batch_size
        # Left to itself the loader draws a seed for its workers from torch's global state.
        generator = torch.Generator().manual_seed(self.seed + epoch)
        yield from DataLoader(
            self.dataset,
            batch_sampler=[
                order[i * size : (i + 1) * size].tolist() for i in range(start, len(self))
            ],
            num_workers=self.num_workers,
            generator=generator,
        )
