from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from updp.algebra import Operator
from updp.fit.rows import Sample, weights_of, with_weights

small = st.integers(1, 3)


@st.composite
def operators(draw: st.DrawFn) -> Operator:
    """Of any stride, dilation, uneven or negative padding and groups."""
    groups, inputs, outputs = draw(small), draw(small), draw(small)
    kernel = draw(small), draw(small)
    torch.manual_seed(draw(st.integers(0, 99)))
    weight = torch.randn(groups * outputs, inputs, *kernel, dtype=torch.float64)
    sides = draw(st.tuples(*[st.integers(-1, 3)] * 4))
    return Operator(
        weight,
        torch.randn(groups * outputs, dtype=torch.float64),
        (draw(small), draw(small)),
        sides,
        (draw(small), draw(small)),
        groups,
    )


@given(operators(), st.integers(1, 200), st.integers(0, 5))
def test_patches_times_weights_equal_the_operator_output(
    operator: Operator, count: int, seed: int
) -> None:
    x = torch.randn(2, operator.in_channels, 11, 10, dtype=torch.float64)
    wanted = operator(x)
    images, _, height, width = wanted.shape
    sample = Sample.draw(images, (height, width), count, seed)
    rows = sample.patches(x, operator) @ weights_of(operator)  # (groups, M, O / groups)
    found = rows.transpose(0, 1).flatten(1)
    torch.testing.assert_close(found, sample.of(wanted), rtol=1e-12, atol=1e-12)


@given(operators())
def test_weights_round_trip_through_a_matrix(operator: Operator) -> None:
    again = with_weights(operator, weights_of(operator))
    assert torch.equal(again.weight, operator.weight)
    assert torch.equal(again.bias, operator.bias)
    assert repr(again) == repr(operator)


@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.integers(1, 300))
def test_sampled_pixels_are_distinct_and_sorted(n: int, h: int, w: int, count: int) -> None:
    sample = Sample.draw(n, (h, w), count, 3)
    pixels = list(zip(sample.image.tolist(), *(p.tolist() for p in sample.places), strict=True))
    assert len(set(pixels)) == len(pixels) == min(count, n * h * w)
    assert pixels == sorted(pixels)
    assert all(i < n and j < h and k < w for i, j, k in pixels)
