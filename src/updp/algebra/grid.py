"""Where the taps of a kernel lie on a coarser or finer grid: the arithmetic that merging shares."""

from math import gcd


def common_step(*distances: int) -> int:
    """Return the widest grid step that reaches every distance; 1 when there is none to reach.

    A kernel whose taps lie on multiples of this step keeps it as its dilation, so that zeros
    between the taps are neither stored nor multiplied.
    """
    return gcd(*distances) or 1


def taps(start: int, count: int, step: int) -> slice:
    """Return the slice that selects `count` grid points from `start`, `step` apart.

    One tap alone has no step: the dilation of a 1-tap kernel need not fit the grid, and may
    round to 0 here.
    """
    return slice(start, start + (count - 1) * step + 1, step or 1)
