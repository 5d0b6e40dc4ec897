from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from updp.fit.ridge import Ridge


@given(
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([1e-6, 1e-2, 1.0, 100.0]),
    st.booleans(),
    st.integers(0, 99),
)
def test_ridge_is_least_squares_with_a_row_for_each_penalty(
    groups: int, inputs: int, outputs: int, strength: float, biased: bool, seed: int
) -> None:
    """Against numpy's least squares on the rows themselves, with the penalty as further rows."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, 40, inputs)) * rng.uniform(0.1, 10, (1, 1, inputs))
    x = np.concatenate([x, np.ones((groups, 40, 1))], 2)
    target = rng.normal(size=(groups, 40, outputs))
    prior = rng.normal(size=(groups, inputs + 1, outputs))
    gram, cross = (torch.from_numpy(np.swapaxes(x, 1, 2) @ y) for y in (x, target))
    found = Ridge(gram, torch.from_numpy(prior), strength, biased=biased).solve(cross)
    for g in range(groups):
        penalty = np.sqrt(strength * np.mean((x[g, :, :-1] ** 2).sum(0)))
        if not biased:  # no unknown, but a part of the target
            np.testing.assert_allclose(found[g, -1], prior[g, -1], rtol=1e-6, atol=1e-7)
            target[g] -= prior[g, -1]
        last = [0.0] if biased else []
        x_g, prior_g = x[g, :, : inputs + len(last)], prior[g, : inputs + len(last)]
        free = np.diag([penalty] * inputs + last)
        rows, wanted = np.vstack([x_g, free]), np.vstack([target[g], free @ prior_g])
        expected = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        np.testing.assert_allclose(found[g, : len(expected)], expected, rtol=1e-6, atol=1e-7)


def test_a_singular_matrix_gets_the_pseudo_inverse_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Inputs that are constant, so that only the sum of all is known, as it rounds."""
    x = torch.ones(1, 50, 3, dtype=torch.float64)
    gram = x.mT @ x
    gram[0, 0, 1] = gram[0, 1, 0] = 50 * (1 + 1e-10)
    target = torch.full((1, 50, 1), 3.0, dtype=torch.float64)
    ridge = Ridge(gram, torch.zeros(1, 3, 1).double(), 0.0)
    torch.testing.assert_close(x @ ridge.solve(x.mT @ target), target)
    assert ridge.inverse().isfinite().all()
    assert "constant" in caplog.text


def test_dead_channels_keep_the_prior() -> None:
    x = torch.zeros(1, 9, 3, dtype=torch.float64)
    x[..., 0], x[..., -1] = torch.arange(9.0), 1
    prior = torch.tensor([[[1.0], [5.0], [2.0]]], dtype=torch.float64)
    found = Ridge(x.mT @ x, prior, 1e-9).solve(x.mT @ (3 * x[..., :1] + 1))
    torch.testing.assert_close(found.flatten(), torch.tensor([3.0, 5.0, 1.0]).double())
