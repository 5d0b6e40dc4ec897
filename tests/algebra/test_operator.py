import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from updp.algebra import Operator, from_conv, from_linear

from .strategies import any_operator, assert_same, direct, images, pairs, quick, randn, same_padding


@quick
@given(st.data())
def test_call_and_sizes_agree_with_torch(data):
    op = data.draw(any_operator())
    x = data.draw(images(op))
    expected = direct(op, x)
    assert_same(op(x), expected)
    assert op.output_size(*x.shape[2:]) == expected.shape[2:]
    assert (op.in_channels, op.out_channels) == (x.shape[1], expected.shape[1])
    assert op.kernel_size == op.weight.shape[2:]


@quick
@given(st.data())
def test_macs_are_half_the_flops_torch_counts(data):
    op = data.draw(any_operator())
    x = data.draw(images(op))[:1]
    with FlopCounterMode(display=False) as counter:
        direct(op, x)
    assert 2 * op.macs(*x.shape[2:]) == counter.get_total_flops()


@same_padding
@quick
@given(st.data())
def test_from_conv_reads_every_attribute(data):
    groups = data.draw(st.sampled_from([1, 2, 4]))
    same_or_valid = data.draw(st.booleans())
    conv = nn.Conv2d(
        4,
        8,
        data.draw(pairs(1, 5)),
        stride=1 if same_or_valid else data.draw(pairs(1, 3)),
        padding=data.draw(st.sampled_from(["same", "valid"]) if same_or_valid else pairs(0, 3)),
        dilation=data.draw(pairs(1, 3)),
        groups=groups,
        bias=data.draw(st.booleans()),
    ).double()
    op = from_conv(conv)
    x = data.draw(images(op))
    assert_same(op(x), conv(x))


def test_from_conv_takes_the_weight_and_padding_really_used():
    conv = nn.Conv2d(4, 6, 3, stride=2, bias=False).double()
    weight = randn(0, 6, 4, 3, 3)
    op = from_conv(conv, weight=weight, padding=(0, 1, 1, 2))
    x = randn(1, 2, 4, 9, 8)
    expected = direct(Operator(weight, torch.zeros(6).double(), (2, 2), (0, 1, 1, 2)), x)
    assert_same(op(x), expected)


def test_from_conv_needs_the_padding_of_another_kernel_size():
    conv = nn.Conv2d(4, 6, 3, padding=1)
    weight = conv.weight[:, :, 1:2, 1:2]
    assert from_conv(conv, weight, padding=(0, 0, 0, 0)).is_pointwise
    with pytest.raises(ValueError, match=r"\(6, 4, 1, 1\).*\(6, 4, 3, 3\).*pass padding"):
        from_conv(conv, weight)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_from_conv_refuses_other_padding_modes(mode):
    with pytest.raises(ValueError, match=mode):
        from_conv(nn.Conv2d(3, 3, 3, padding=1, padding_mode=mode))


@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_is_token_wise(bias):
    linear = nn.Linear(5, 7, bias=bias).double()
    tokens = randn(0, 2, 9, 5)
    op = from_linear(linear)
    assert op.is_pointwise
    assert op.macs(9, 1) == 9 * 5 * 7
    assert_same(op(tokens.mT[..., None]), linear(tokens).mT[..., None])


def test_an_operator_is_a_copy_in_float64_without_gradient():
    conv = nn.Conv2d(2, 2, 1).double()
    op = from_conv(conv)
    before = op.weight.clone()
    nn.init.zeros_(conv.weight)
    assert torch.equal(op.weight, before)
    assert not op.weight.requires_grad
    assert not op.bias.requires_grad
    assert from_conv(nn.Conv2d(2, 2, 1).bfloat16()).weight.dtype == torch.float64
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
