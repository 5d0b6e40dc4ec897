"""Ranges of a weight's channels, and the noise from rounding them to 8 bits."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
_LEVELS = 127  # levels of a symmetric signed byte on each side of zero


def channel_ranges(weight: Array, axis: int) -> Array:
    """Largest magnitude (channels,) in each slice of `weight` along `axis`."""
    ranges: Array = np.abs(weight).max(_others(weight, axis), initial=0)
    return ranges


def spread(ranges: Array) -> float:
    """The widest range over the narrowest; channels of zeros, which lose nothing, are ignored."""
    used = ranges[ranges > 0]
    return float(used.max() / used.min()) if used.size else 1.0


def signal_to_noise(weight: Array, axis: int | None = None) -> float | None:
    """Signal-to-quantisation-noise ratio in dB of `weight` as symmetric signed bytes.

    One scale for the whole tensor, or with `axis` one for each channel along it. None if nothing
    is lost.
    """
    exact = weight.astype(np.float64)
    reduced = None if axis is None else _others(exact, axis)
    scale = np.abs(exact).max(reduced, keepdims=True, initial=0) / _LEVELS
    scale = np.where(scale > 0, scale, 1)
    lost = float(np.square(np.rint(exact / scale) * scale - exact).sum())
    return 10 * math.log10(float(np.square(exact).sum()) / lost) if lost else None


def _others(weight: Array, axis: int) -> tuple[int, ...]:
    """All axes except `axis`."""
    return tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
