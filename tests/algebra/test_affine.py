import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from updp.algebra import Affine, after, as_operator, before, chain, from_batchnorm

from .strategies import (
    any_operator,
    assert_same,
    direct,
    error,
    from_conv,
    images,
    quick,
    randn,
    statistics,
)


@quick
@given(st.data())
def test_after_folds_a_batchnorm(data):
    op = data.draw(any_operator())
    norm = data.draw(statistics(op.out_channels))
    x = data.draw(images(op))
    merged = after(op, norm.affine())
    assert_same(direct(merged, x), norm(direct(op, x)))
    assert merged.weight.shape == op.weight.shape


@quick
@given(st.data())
def test_before_folds_a_batchnorm_on_the_padded_map(data):
    op = data.draw(any_operator())
    norm = data.draw(statistics(op.in_channels))
    x = data.draw(images(op))
    merged = before(norm.affine(), op)
    assert_same(direct(merged, x), direct(op, norm(F.pad(x, op.padding)), (0,) * len(op.padding)))
    assert merged.weight.shape == op.weight.shape


@quick
@given(st.data())
def test_two_batchnorms_chain_into_one_depthwise_operator(data):
    channels = data.draw(st.integers(1, 9))
    first, second = data.draw(statistics(channels)), data.draw(statistics(channels))
    x = randn(data.draw(st.integers(0, 99)), 2, channels, 3, 5)
    op = as_operator(chain(first.affine(), second.affine()))
    assert_same(direct(op, x), second(first(x)))
    assert op.is_pointwise
    assert op.groups == channels


def test_padding_behind_a_batchnorm_differs_at_the_border():
    """The reason why `before` says where the zeros enter."""
    conv = torch.nn.Conv2d(3, 4, 3, padding=1).double()
    x, shift = randn(0, 1, 3, 8, 8), randn(1, 3)
    merged = before(Affine(torch.ones(3).double(), shift), from_conv(conv))
    ordinary = conv(x + shift[:, None, None])
    assert error(direct(merged, x)[..., 1:-1, 1:-1], ordinary[..., 1:-1, 1:-1]) <= 1e-12
    assert error(direct(merged, x), ordinary) > 1e-2


def test_a_batchnorm_brings_its_own_eps():
    mean, var = torch.zeros(1).double(), torch.zeros(1).double()
    assert from_batchnorm(mean, var, None, None, eps=1e-2).scale.item() == pytest.approx(10)


def test_chain_refuses_other_channels():
    one, three = (Affine(torch.ones(n).double(), torch.ones(n).double()) for n in (1, 3))
    with pytest.raises(ValueError, match="1 channels, second 3"):
        chain(one, three)
