"""Detect images that are in both the training and the test split."""

import hashlib
import logging
from collections.abc import Callable

import numpy as np

_log = logging.getLogger(__name__)

_SAMPLED = 256  # number of images compared from each split
Read = Callable[[int], bytes]


def warn_of_shared_images(
    train: Read, train_count: int, test: Read, test_count: int, *, run: int = 1
) -> int:
    """Compare a sample of both splits by hash; warn about and count test images in both.

    Args:
        train: function that returns the contents of a training image as bytes.
        train_count: number of training images.
        test, test_count: the same for the test split.
        run: number of consecutive images to read together, which is quicker if a shard is read
            in large parts.
    """
    known = {_digest(train(index)) for index in _sample(train_count, run)}
    seen = _sample(test_count, run)
    shared = sum(_digest(test(index)) in known for index in seen)
    if shared:
        _log.warning(
            "%d of %d test images looked at are among %d of the training images, too: "
            "the accuracy of this test split is not one of unseen images",
            shared,
            len(seen),
            len(known),
        )
    return shared


def _sample(count: int, run: int) -> list[int]:
    if count <= _SAMPLED:
        return list(range(count))
    rng = np.random.Generator(np.random.PCG64(0))
    starts = np.sort(rng.choice(count // run, _SAMPLED // run, replace=False)) * run
    return [int(start) + step for start in starts for step in range(run)]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
