from dataclasses import replace
from math import gcd

import pytest
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from updp.algebra import Operator, compose
from updp.algebra.compose import common_step, taps

from .strategies import (
    TOLERANCE,
    assert_same,
    direct,
    error,
    images,
    interior,
    quick,
    randn,
    ring,
    sizes,
    two_in_a_row,
)


def operator(o, i, k, groups=1, padding=0, stride=1, seed=0, dims=2):
    return Operator(
        randn(seed, o, i // groups, *[k] * dims),
        randn(seed + 1, o),
        (stride,) * dims,
        (padding,) * 2 * dims,
        (1,) * dims,
        groups,
    )


def all_padding_first(first, second, x):
    """First with its own padding and second's, a stride apart; then second with none."""
    strides = [s for s in reversed(first.stride) for _ in range(2)]
    sums = zip(first.padding, second.padding, strides, strict=True)
    padding = tuple(p1 + s * p2 for p1, p2, s in sums)
    return direct(second, direct(first, x, padding), (0,) * len(padding))


@quick
@given(st.data())
def test_composed_operators_equal_the_sequence_with_all_padding_first(data):
    first, second = data.draw(two_in_a_row())
    merged = compose(first, second)
    x = data.draw(images(merged))
    assert_same(direct(merged, x), all_padding_first(first, second, x))
    assert merged.groups == gcd(first.groups, second.groups)


@quick
@given(st.data())
def test_an_unpadded_second_operator_equals_the_plain_sequence(data):
    first, second = data.draw(two_in_a_row())
    second = replace(second, padding=(0,) * len(second.padding))
    merged = compose(first, second)
    x = data.draw(images(merged))
    assert_same(direct(merged, x), direct(second, direct(first, x)))


@quick
@given(st.data())
def test_padding_between_differs_at_the_border_only(data):
    """The reason why the trainable block carries all padding on its first operator."""
    i, m, o = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    (k1, k2), seed = data.draw(sizes(1, 2)), data.draw(st.integers(0, 2**20))
    k1, p2 = 2 * k1 - 1, k2
    first = operator(m, i, k1, padding=k1 // 2, seed=seed)
    second = operator(o, m, 2 * p2 + 1, padding=p2, seed=seed + 2)
    x = randn(seed + 4, 2, i, 9, 11)
    naive = direct(second, direct(first, x))
    merged = direct(compose(first, second), x)
    assert error(interior(merged, p2), interior(naive, p2)) <= TOLERANCE
    assert error(ring(merged, p2), ring(naive, p2)) > 1e-3


@quick
@given(st.data())
def test_composition_is_associative(data):
    a, b = data.draw(two_in_a_row())
    k, dims = data.draw(st.integers(1, 3)), a.weight.ndim - 2
    few = (..., *[slice(3)] * dims)
    a, b = (replace(op, weight=op.weight[few]) for op in (a, b))
    c = operator(4, b.out_channels, k, padding=1, stride=2, dims=dims)
    left, right = compose(compose(a, b), c), compose(a, compose(b, c))
    assert (left.padding, left.stride, left.groups) == (right.padding, right.stride, right.groups)
    # One may have found a wider dilation: hold them against one another on an image.
    x = data.draw(images(left))
    assert_same(direct(left, x), direct(right, x))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 12])
def test_an_inverted_residual_becomes_one_3x3(stride, size):
    """MobileNetV2: 1x1, depthwise 3x3, 1x1 with all padding on the first."""
    expand = operator(48, 8, 1, padding=1, seed=1)
    depthwise = operator(48, 48, 3, groups=48, stride=stride, seed=2)
    project = operator(12, 48, 1, seed=3)
    merged = compose(compose(expand, depthwise), project)
    x = randn(4, 2, 8, size, size)
    expected = F.conv2d(F.pad(x, (1, 1, 1, 1)), expand.weight, expand.bias)
    expected = F.conv2d(expected, depthwise.weight, depthwise.bias, stride, groups=48)
    expected = F.conv2d(expected, project.weight, project.bias)
    assert_same(direct(merged, x), expected)
    assert repr(merged) == repr(operator(12, 8, 3, padding=1, stride=stride))


def test_pointwise_stays_pointwise():
    merged = compose(operator(20, 10, 1), operator(30, 20, 1, seed=2))
    assert merged.is_pointwise
    x = randn(5, 2, 10, 3, 3)
    expected = F.conv2d(F.conv2d(x, randn(0, 20, 10, 1, 1), randn(1, 20)), randn(2, 30, 20, 1, 1))
    assert_same(direct(merged, x), expected + randn(3, 30)[:, None, None])


def test_depthwise_stays_depthwise_and_keeps_its_dilation():
    first = replace(operator(6, 6, 3, groups=6), dilation=(2, 3))
    second = replace(operator(6, 6, 5, groups=6, seed=2), dilation=(4, 1))
    merged = compose(first, second)
    assert (merged.groups, merged.dilation) == (6, (2, 1))
    assert merged.kernel_size == (2 * 4 + 2 + 1, 2 * 3 + 4 + 1)


def test_stride_of_the_first_dilates_a_lone_second_kernel():
    merged = compose(operator(4, 4, 1, stride=3), operator(4, 4, 3, seed=2))
    assert (merged.kernel_size, merged.dilation, merged.stride) == ((3, 3), (3, 3), (3, 3))


def test_coprime_groups_make_the_smallest_kernel_that_holds_them():
    merged = compose(operator(12, 4, 1, groups=4), operator(12, 12, 1, groups=6, seed=2))
    assert merged.groups == 2
    assert merged.weight.shape == (12, 2, 1, 1)


def test_compose_refuses_channels_that_do_not_match():
    with pytest.raises(
        ValueError, match=r"4 channels.*reads 6.*\(4, 2, 3, 3\).*\(8, 3, 1, 1\).*groups=2"
    ):
        compose(operator(4, 2, 3), operator(8, 6, 1, groups=2))


@pytest.mark.parametrize(
    ("distances", "step"), [((), 1), ((0, 0), 1), ((0, 3), 3), ((4, 6), 2), ((-2, 4), 2)]
)
def test_common_step_is_the_widest_that_reaches_all(distances, step):
    assert common_step(*distances) == step


@pytest.mark.parametrize(
    ("start", "count", "step", "places"),
    [(0, 3, 1, [0, 1, 2]), (1, 3, 2, [1, 3, 5]), (4, 1, 0, [4]), (4, 1, 7, [4])],
)
def test_taps_selects_grid_points(start, count, step, places):
    assert list(range(10))[taps(start, count, step)] == places
