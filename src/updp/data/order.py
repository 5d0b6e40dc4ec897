"""Orders of training: each image once, those read together not far apart; and some of many."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BUFFER = 8192  # images among which training draws at a time: more hardly mix better


@dataclass(frozen=True)
class Groups:
    """Images that are stored together, such as row groups of Parquet or parts of a tar shard.

    Args:
        starts: the first image of each group, ascending.
        together: groups that training may draw from at a time, as their reader keeps so many.
    """

    starts: NDArray[np.int64]
    together: int

    def of(self, indices: NDArray[np.int64]) -> "Groups":
        """The groups of a part of the images, by ascending `indices`, numbered anew."""
        return Groups(np.searchsorted(indices, self.starts), self.together)


def shuffled(
    indices: NDArray[np.int64], groups: Groups | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Permute `indices`; with `groups` only within windows of a few groups, so that few are open.

    The groups are shuffled and cut into windows of `together`; each window's images are shuffled
    among themselves. Without groups any order is as likely as any other.
    """
    if groups is None:
        return rng.permutation(indices)
    place = rng.permutation(len(groups.starts))  # of each group in this order
    group = np.searchsorted(groups.starts, indices, side="right") - 1
    window = place[group] // groups.together
    return indices[np.lexsort((rng.random(len(indices)), window))]


def spaced(count: int, most: int) -> list[int]:
    """Indices of at most so many of `count` items, evenly from the first to the last."""
    if not count:
        return []
    return [int(n) for n in np.unique(np.linspace(0, count - 1, most).astype(int))]
