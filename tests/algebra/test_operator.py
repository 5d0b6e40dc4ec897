import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from updp.algebra import from_linear

from .strategies import any_operator, assert_same, direct, from_conv, images, quick, randn


@quick
@given(st.data())
def test_call_and_channels_agree_with_torch(data):
    op = data.draw(any_operator())
    x = data.draw(images(op))
    expected = direct(op, x)
    assert_same(op(x), expected)
    assert (op.in_channels, op.out_channels) == (x.shape[1], expected.shape[1])
    assert op.kernel_size == op.weight.shape[2:]


@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_is_token_wise(bias):
    linear = nn.Linear(5, 7, bias=bias).double()
    tokens = randn(0, 2, 9, 5)
    op = from_linear(linear)
    assert op.is_pointwise
    assert_same(op(tokens.mT[..., None]), linear(tokens).mT[..., None])


def test_from_linear_copies_in_float64_without_gradient():
    linear = nn.Linear(2, 2).double()
    op = from_linear(linear)
    before = op.weight.clone()
    nn.init.zeros_(linear.weight)
    assert torch.equal(op.weight, before)
    assert not op.weight.requires_grad
    assert not op.bias.requires_grad
    assert from_linear(nn.Linear(2, 2).bfloat16()).weight.dtype == torch.float64
    with pytest.raises(dataclasses.FrozenInstanceError):
        op.groups = 2


def test_call_computes_in_the_dtype_of_its_input():
    assert from_conv(nn.Conv2d(3, 4, 3))(torch.zeros(1, 3, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    [{"stride": (2, 1)}, {"padding": (0, 0, 1, 0)}, {"weight": randn(0, 3, 3, 1, 2)}],
)
def test_is_pointwise_means_one_pixel_in_place(change):
    op = from_linear(nn.Linear(3, 3))
    assert op.is_pointwise
    assert not dataclasses.replace(op, **change).is_pointwise


def test_repr_is_one_short_line():
    assert repr(from_conv(nn.Conv2d(4, 8, (3, 1), stride=2, padding=(1, 0), groups=2))) == (
        "Operator(4->8, kernel=3x1, stride=(2, 2), padding=(0, 0, 1, 1), dilation=(1, 1), groups=2)"
    )
