"""Which channels go, against looking at every one and solving again."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from updp.fit.channels import select_channels
from updp.fit.ridge import Ridge


def reference(gram: Tensor, cross: Tensor, squares: float, taps: int, keep: int) -> list[int]:
    """Greedy: leave out the channel without which what remains is explained best, and again."""
    left = list(range((len(gram) - 1) // taps))
    while len(left) > keep:

        def error(without: int) -> float:
            rows = [c * taps + t for c in left if c != without for t in range(taps)]
            rows.append(len(gram) - 1)
            h, b = gram[rows][:, rows], cross[rows]
            return squares - float((b * torch.linalg.solve(h, b)).sum())

        left.remove(min(left, key=error))
    return left


@settings(deadline=None)
@given(
    st.integers(2, 7), st.sampled_from([1, 2, 9]), st.integers(1, 4), st.integers(0, 99), st.data()
)
def test_channels_are_removed_in_the_order_of_an_exhaustive_search(
    channels: int, taps: int, outputs: int, seed: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, channels))
    generator = torch.Generator().manual_seed(seed)
    unknowns = channels * taps + 1
    mix = torch.randn(unknowns, unknowns, generator=generator, dtype=torch.float64)
    x = torch.randn(4 * unknowns, unknowns, generator=generator, dtype=torch.float64) @ mix
    target = x @ torch.randn(unknowns, outputs, generator=generator, dtype=torch.float64)
    target = target + torch.randn(target.shape, generator=generator, dtype=torch.float64)
    gram, cross = x.T @ x, x.T @ target
    expected = reference(gram, cross, float(target.square().sum()), taps, keep)
    ridge = Ridge(gram[None], torch.zeros_like(cross)[None], 0.0)
    found = select_channels(ridge.inverse()[0], ridge.solve(cross[None])[0], taps, keep)
    assert found.tolist() == expected


def test_copies_of_channels_are_removed_first_from_a_wide_operator() -> None:
    torch.manual_seed(0)
    half = torch.randn(5000, 200, dtype=torch.float64)
    x = torch.cat([half, half + 1e-3 * torch.randn_like(half), torch.ones(5000, 1).double()], 1)
    target = half @ torch.randn(200, 20, dtype=torch.float64)
    gram, cross = (x.T @ x)[None], (x.T @ target)[None]
    ridge = Ridge(gram, torch.zeros_like(cross), 1e-6)
    found = select_channels(ridge.inverse()[0], ridge.solve(cross)[0], 1, 200)
    assert found.tolist() == sorted(set(found.tolist()))
    assert len(found) == 200
    assert len(set((found % 200).tolist())) > 190  # of nearly every pair one is left
