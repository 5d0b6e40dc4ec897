import pytest

from updp.algebra.grid import common_step, taps


@pytest.mark.parametrize(
    ("distances", "step"), [((), 1), ((0, 0), 1), ((0, 3), 3), ((4, 6), 2), ((-2, 4), 2)]
)
def test_common_step(distances, step):
    assert common_step(*distances) == step


@pytest.mark.parametrize(
    ("start", "count", "step", "places"),
    [(0, 3, 1, [0, 1, 2]), (1, 3, 2, [1, 3, 5]), (4, 1, 0, [4]), (4, 1, 7, [4])],
)
def test_taps(start, count, step, places):
    assert list(range(10))[taps(start, count, step)] == places
