"""The number of channels that a share of them is."""

from math import lcm

_MULTIPLE = 8


def share_of(count: int, share: float, unit: int = 1) -> int:
    """A share of some channels: a multiple of 8, as runtimes like, from 16 on; one at least.

    It is a multiple of `unit`, too, of which `count` is one.
    """
    wide = lcm(_MULTIPLE, unit)
    unit = wide if count >= 2 * wide else unit
    return min(count, max(unit, round(count * share / unit) * unit))
