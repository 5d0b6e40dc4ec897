from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from updp.algebra import can_shrink, centre_tap

from .strategies import any_operator, assert_same, direct, quick, randn, same_padding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_centre_tap_keeps_dtype_and_gradient(dtype):
    weight = nn.Parameter(randn(0, 4, 2, 3, 5).to(dtype))
    small = centre_tap(weight)
    assert small.shape == (4, 2, 1, 1)
    assert small.dtype == dtype
    small.sum().backward()
    expected = torch.zeros_like(weight)
    expected[:, :, 1, 2] = 1
    assert torch.equal(weight.grad, expected)


@same_padding
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_the_centre_is_the_pixel_that_same_padding_puts_there(k):
    delta = torch.zeros(1, 1, 9, 9)
    delta[..., 4, 4] = 1
    weight = randn(0, 1, 1, k, k).float()
    y = F.conv2d(delta, weight, padding="same")
    assert torch.equal(centre_tap(weight).flatten(), y[0, 0, 4, 4:5])


@quick
@given(st.data())
def test_shrinking_loses_only_the_outer_taps(data):
    """Where it is allowed, a kernel that is zero but for its centre is reproduced exactly."""
    op = data.draw(any_operator())
    half = [d * (k - 1) // 2 for k, d in zip(op.kernel_size, op.dilation, strict=True)]
    padding = tuple(p for p in reversed(half) for _ in range(2))
    allowed = can_shrink(op.kernel_size, padding, op.dilation)
    assert allowed == all(k % 2 for k in op.kernel_size)
    centre = centre_tap(op.weight)
    alone = torch.zeros_like(op.weight)
    middle = tuple((k - 1) // 2 for k in op.kernel_size)
    alone[(..., *middle)] = centre.flatten(1).view_as(alone[(..., *middle)])
    x = randn(0, 2, op.in_channels, *(13, 14, 7)[: len(half)])
    wide = direct(replace(op, weight=alone), x, padding)
    if allowed:
        assert_same(direct(replace(op, weight=centre), x, (0,) * len(padding)), wide)


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "answer"),
    [
        ((3, 3), (1, 1, 1, 1), (1, 1), True),
        ((3, 5), (2, 2, 1, 1), (1, 1), True),
        ((3, 3), (2, 2, 2, 2), (2, 2), True),
        ((1, 1), (0, 0, 0, 0), (3, 3), True),
        ((3, 3), (1, 1, 1, 1), (2, 2), False),
        ((3, 3), (0, 2, 1, 1), (1, 1), False),
        ((2, 2), (0, 1, 0, 1), (1, 1), False),
        ((2, 2), (1, 1, 1, 1), (2, 2), False),
        ((3, 3), (0, 0, 0, 0), (1, 1), False),
        ((3, 3), (2, 2, 2, 2), (1, 1), False),
    ],
)
def test_can_shrink_wants_odd_kernels_padded_by_half_their_reach(kernel, padding, dilation, answer):
    assert can_shrink(kernel, padding, dilation) is answer


def test_can_shrink_wants_a_dilation_for_each_axis():
    with pytest.raises(ValueError, match="shorter"):
        can_shrink((3, 3), (1, 1, 1, 1), (1,))
