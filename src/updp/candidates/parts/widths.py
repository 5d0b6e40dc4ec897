"""Number of channels for a share of a width."""

from math import lcm

_MULTIPLE = 8


def share_of(count: int, share: float, unit: int = 1) -> int:
    """Number of channels for a share of `count`; at least one.

    A multiple of `unit`, which divides `count`; for wide layers also of 8, which runtimes prefer.
    """
    wide = lcm(_MULTIPLE, unit)
    unit = wide if count >= 2 * wide else unit
    return min(count, max(unit, round(count * share / unit) * unit))
