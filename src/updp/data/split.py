"""Hold images out of the training split: for calibration, fit and search, or as a test split."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from updp.errors import UserError

_TEST_IMAGES = 10_000  # maximum: enough to know top-1 to a point


def hold_out_test(labels: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split off a tenth of the images as a test split, always the same ones.

    Returns:
        Training and test indices, both ascending.

    Raises:
        UserError: there is only one image.
    """
    if len(labels) < 2:
        raise UserError(
            "one image alone cannot be split into training and test images: give more, or a test "
            "split"
        )
    count = min(max(1, len(labels) // 10), _TEST_IMAGES)
    train, test = hold_out(len(labels), labels, count, seed=0)
    return train.numpy(), np.sort(test.numpy())


def hold_out(n: int, labels: Sequence[int], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split `n` images, stratified: training indices (ascending), and indices of `count` held out.

    The share of each class is kept up to one image. The held-out indices are shuffled, so that any
    prefix of them is a random sample.
    """
    assert len(labels) == n
    if not 0 <= count <= n:
        raise UserError(f"cannot hold out {count} of {n} images: hold out fewer")
    rng = np.random.Generator(np.random.PCG64(seed))
    _, class_of, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    # Largest remainders: round every class's share down, then distribute the rest.
    quotas, remainders = np.divmod(sizes * count, n)
    quotas[np.argsort(-remainders, kind="stable")[: count - quotas.sum()]] += 1
    order = rng.permutation(n)
    grouped = order[np.argsort(class_of[order], kind="stable")]
    members = np.split(grouped, np.cumsum(sizes)[:-1])
    held = rng.permutation(np.concatenate([m[:q] for m, q in zip(members, quotas, strict=True)]))
    train = np.setdiff1d(np.arange(n), held)
    return torch.from_numpy(train), torch.from_numpy(held)
