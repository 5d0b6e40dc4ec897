"""Orders of items: a shuffle that keeps images of one group together, and an even selection."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BUFFER = 8192  # number of images that training shuffles at a time; more would hardly mix better


@dataclass(frozen=True)
class Groups:
    """Images that are stored together, such as row groups of Parquet or parts of a tar shard.

    Args:
        starts: index of the first image of each group, ascending.
        together: number of groups to shuffle at a time; their reader keeps so many in memory.
    """

    starts: NDArray[np.int64]
    together: int

    def of(self, indices: NDArray[np.int64]) -> "Groups":
        """The groups for a selection of the images, given by ascending `indices`."""
        return Groups(np.searchsorted(indices, self.starts), self.together)


def shuffled(
    indices: NDArray[np.int64], groups: Groups | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Permute `indices`; with `groups` only within windows of a few groups, so that few are open.

    The groups are shuffled and cut into windows of `together` groups; the images of each window are
    shuffled. Without groups all orders are equally likely.
    """
    if groups is None:
        return rng.permutation(indices)
    place = rng.permutation(len(groups.starts))  # position of each group in the shuffled order
    group = np.searchsorted(groups.starts, indices, side="right") - 1
    window = place[group] // groups.together
    return indices[np.lexsort((rng.random(len(indices)), window))]


def spaced(count: int, most: int) -> list[int]:
    """Indices of at most `most` of `count` items, evenly spaced from the first to the last."""
    if not count:
        return []
    return [int(n) for n in np.unique(np.linspace(0, count - 1, most).astype(int))]
