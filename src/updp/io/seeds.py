"""Seeds: all random numbers are pure functions of the recipe's seed and a position."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mix(*numbers: int) -> int:
    """One seed from several numbers; similar numbers give unrelated seeds.

    The generator is splitmix64 (Steele et al., *Fast splittable pseudorandom number generators*,
    2014).
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1


@contextmanager
def random_state(seed: int | None = None) -> Iterator[None]:
    """Context that restores the caller's random states at its end; sets `seed` first, if given.

    The states are those of NumPy, of `random` and of torch's CPU generator. CUDA's are left alone,
    because reading them would initialise CUDA.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                set_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def set_seed(seed: int) -> None:
    """Seed NumPy, `random` and torch's CPU generator; use it within `random_state`."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
