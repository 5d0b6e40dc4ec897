from dataclasses import replace
from math import gcd

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from updp.algebra import Affine, Operator, add, after, compose, identity, kept_groups, reorder

from .strategies import (
    any_operator,
    assert_same,
    direct,
    from_conv,
    images,
    quick,
    randn,
    same_padding,
    two_side_by_side,
)


@quick
@given(st.data())
def test_add_equals_the_sum_of_both_outputs(data):
    a, b = data.draw(two_side_by_side())
    x = data.draw(images(a, b))
    merged = add(a, b)
    assert_same(direct(merged, x), direct(a, x) + direct(b, x))
    assert merged.groups == gcd(a.groups, b.groups)


@quick
@given(st.data())
def test_reordered_operators_give_their_channels_in_that_order(data):
    op = data.draw(any_operator())
    x = data.draw(images(op))
    order = torch.tensor(data.draw(st.permutations(range(op.out_channels))))
    found = reorder(op, order)
    assert_same(direct(found, x), direct(op, x)[:, order])
    assert op.groups % found.groups == 0


def test_an_order_keeps_the_groups_that_it_does_not_mix():
    assert kept_groups(6, torch.tensor([1, 0, 2, 3, 5, 4])) == 3
    assert kept_groups(4, torch.tensor([0, 2, 1, 3])) == 1
    assert kept_groups(4, torch.arange(8)) == 4


@same_padding
@quick
@given(st.data())
def test_a_skip_adds_a_dirac_tap(data):
    """Odd and even kernels, dilated, dense to depthwise, under 'same' padding."""
    groups = data.draw(st.sampled_from([1, 2, 6]))
    kernel = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    conv = nn.Conv2d(
        6, 6, kernel, padding="same", dilation=data.draw(st.integers(1, 3)), groups=groups
    ).double()
    x = randn(data.draw(st.integers(0, 99)), 2, 6, 7, 9)
    merged = add(from_conv(conv), identity(6, data.draw(st.sampled_from([1, groups]))))
    assert_same(direct(merged, x), conv(x) + x)
    assert merged.kernel_size == kernel or conv.dilation != (1, 1)


@pytest.mark.parametrize("size", [7, 8, 9])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_strided_shortcut_keeps_kernel_and_padding(size, kernel):
    """ResNet: 3x3 stride 2 plus 1x1 stride 2; the kernel and its padding stay as they are."""
    branch = nn.Conv2d(4, 8, kernel, stride=2, padding=kernel // 2).double()
    shortcut = nn.Conv2d(4, 8, 1, stride=2, bias=False).double()
    merged = add(from_conv(branch), from_conv(shortcut))
    x = randn(0, 2, 4, size, size + 1)
    assert_same(direct(merged, x), branch(x) + shortcut(x))
    assert repr(merged) == repr(from_conv(branch))


def test_a_dilated_skip_keeps_the_dilation():
    conv = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4)
    merged = add(from_conv(conv), identity(4, groups=4))
    assert repr(merged) == repr(from_conv(conv))


def test_a_basic_block_with_its_skip_becomes_one_5x5():
    """Two 3x3, all padding on the first, layer scale, skip: one 5x5."""
    first = Operator(randn(0, 6, 4, 3, 3), randn(1, 6), padding=(2, 2, 2, 2))
    second = Operator(randn(2, 4, 6, 3, 3), randn(3, 4))
    gamma, x = randn(4, 4), randn(5, 2, 4, 9, 7)
    merged = add(after(compose(first, second), Affine(gamma, torch.zeros_like(gamma))), identity(4))
    branch = F.conv2d(F.conv2d(x, first.weight, first.bias, padding=2), second.weight, second.bias)
    assert_same(direct(merged, x), gamma[:, None, None] * branch + x)
    assert merged.kernel_size == (5, 5)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (6, 1), (6, 3), (6, 6)])
def test_identity_returns_its_input(channels, groups):
    x = randn(0, 2, channels, 3, 4)
    op = identity(channels, groups)
    assert torch.equal(direct(op, x), x)
    assert op.groups == groups
    assert op.is_pointwise


def test_add_refuses_operators_that_differ_and_prints_both():
    a = identity(4)
    with pytest.raises(ValueError, match=r"strides differ.*\(1, 1\).*\(2, 2\)"):
        add(a, replace(a, stride=(2, 2)))
    with pytest.raises(ValueError, match=r"output sizes differ.*0, 0, 0, 0.*0, 1, 0, 0"):
        add(a, replace(a, padding=(0, 1, 0, 0)))
    with pytest.raises(ValueError, match=r"channels differ.*4->4.*5->5"):
        add(a, identity(5))
    with pytest.raises(ValueError, match=r"channels=4 .*groups=3"):
        identity(4, groups=3)
