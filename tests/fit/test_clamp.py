from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from updp.fit import Clamp, clamp_of

INF = float("inf")


def of_maps_alone(x: torch.Tensor) -> torch.Tensor:
    _, _, _, _ = x.shape
    return x.relu()


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (None, Clamp()),
        (nn.Identity(), Clamp()),
        (nn.ReLU(inplace=True), Clamp(0, INF)),
        (F.relu6, Clamp(0, 6)),
        (nn.Hardtanh(), Clamp(-1, 1)),
        (F.gelu, Clamp()),
        (nn.LeakyReLU(), Clamp()),
        (nn.Hardswish(), Clamp()),
        (nn.PReLU(5), Clamp()),
        (torch.tanh, Clamp()),
        (of_maps_alone, Clamp()),
    ],
)
def test_clamps_are_recognised_by_trying(
    function: Callable[[torch.Tensor], torch.Tensor] | None, wanted: Clamp
) -> None:
    assert clamp_of(function, torch.zeros(1)) == wanted


values = st.floats(-9, 9)


@given(values, values, st.sampled_from([Clamp(0, INF), Clamp(0, 6), Clamp(-1, 1), Clamp()]))
def test_nearest_is_the_closest_point_with_the_same_clamped_value(
    target: float, value: float, clamp: Clamp
) -> None:
    t, v = torch.tensor([target]).double(), torch.tensor([value]).double()
    nearest = clamp.nearest(t, v)
    assert clamp(nearest) == clamp(t)
    grid = torch.linspace(-20, 20, 4001).double()
    alike = torch.cat([grid[clamp(grid) == clamp(t)], t])
    assert (nearest - v).abs() <= (alike - v).abs().min() + 1e-12
