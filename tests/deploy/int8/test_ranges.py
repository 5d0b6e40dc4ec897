"""Ranges and rounding of weights, against torch's own quantiser."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from updp.deploy.int8.ranges import channel_ranges, signal_to_noise, spread

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(shape=SHAPES, seed=st.integers(0, 99), data=st.data())
def test_ranges_are_those_of_each_slice(shape: list[int], seed: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    weight = np.random.default_rng(seed).normal(size=shape)
    slices = torch.from_numpy(weight).unbind(axis)
    expected = [max(map(abs, part.flatten().tolist())) for part in slices]
    assert channel_ranges(weight, axis).tolist() == expected


def test_spread_leaves_out_channels_of_zeros() -> None:
    assert spread(np.array([0.5, 0.0, 4.0, 1.0])) == 8
    assert spread(np.zeros(3)) == 1


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_signal_to_noise_is_that_of_torchs_symmetric_bytes(axis: int | None) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    weight *= torch.logspace(-2, 0, 6)[:, None, None, None]
    if axis is None:
        scale = weight.abs().max().item() / 127
        rounded = torch.fake_quantize_per_tensor_affine(weight, scale, 0, -127, 127)
    else:
        scales = weight.abs().amax(tuple({0, 1, 2, 3} - {axis})) / 127
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight, scales, zeros, axis, -127, 127)
    expected = 10 * math.log10(weight.square().sum() / (rounded - weight).square().sum())
    found = signal_to_noise(weight.numpy(), axis)
    assert found is not None
    assert found == pytest.approx(expected, abs=0.01)


def test_one_wide_channel_costs_the_others_per_tensor_only() -> None:
    weight = np.random.default_rng(0).normal(size=(8, 50))
    before = signal_to_noise(weight)
    weight[0] *= 1000
    narrow = weight[1:]
    rounded = np.rint(weight / np.abs(weight).max() * 127)
    assert before is not None
    assert before > 30
    assert not rounded[1:].any()  # nothing of them is left
    assert signal_to_noise(narrow, 0) > 30  # type: ignore[operator]


def test_nothing_is_lost_of_zeros_and_of_one_magnitude() -> None:
    assert signal_to_noise(np.zeros((2, 2))) is None
    assert signal_to_noise(np.array([[1.0, -1.0], [4.0, 4.0]]), 0) is None
