"""The number of channels that a share of them is."""

_MULTIPLE = 8


def share_of(count: int, share: float) -> int:
    """A share of some channels: a multiple of 8, as runtimes like, from 16 on; one at least."""
    unit = _MULTIPLE if count >= 2 * _MULTIPLE else 1
    return min(count, max(unit, round(count * share / unit) * unit))
