import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from updp.fit.moments import Moments


@given(
    st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.integers(2, 30), st.integers(0, 99)
)
def test_the_error_is_that_of_the_rows(
    groups: int, unknowns: int, outputs: int, rows: int, seed: int
) -> None:
    """In two parts, against NumPy on all rows at once."""
    rng = np.random.default_rng(seed)
    x, target = rng.normal(size=(groups, rows, unknowns)), rng.normal(size=(groups, rows, outputs))
    prior, change = rng.normal(size=(2, groups, unknowns, outputs))
    residual = target - x @ prior
    half = rows // 2
    parts = []
    for part in (slice(half), slice(half, None)):
        sums = Moments.of(groups, unknowns, groups * outputs, torch.device("cpu"))
        sums.add(*(torch.from_numpy(values[:, part]) for values in (x, residual, target)))
        parts.append(sums)
    found = parts[0] + parts[1]
    variance = max(target.var(), 1e-12)
    expected = np.square(target - x @ (prior + change)).mean() / variance
    # sums of squares lose in the variance what the targets' mean is above their spread
    lost = 1 + np.square(target).mean() / variance
    bound = 1e-13 * rows * unknowns * lost
    assert found.error(torch.from_numpy(change)) == pytest.approx(expected, rel=bound, abs=bound)
    assert found.count == target.size
    torch.testing.assert_close(found.gram, torch.from_numpy(np.swapaxes(x, 1, 2) @ x))


def test_the_prior_of_rows_that_it_explains_has_no_error_at_all() -> None:
    sums = Moments.of(1, 3, 2, torch.device("cpu"))
    x, weights = torch.randn(1, 50, 3).double(), torch.randn(1, 3, 2).double()
    sums.add(x, x @ weights - x @ weights, x @ weights)
    assert sums.error(torch.zeros(1, 3, 2).double()) == 0
