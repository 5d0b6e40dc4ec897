"""Fewer and smaller heads, against truncated singular value decompositions of what they compute."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.families import error
from updp.candidates.attention.heads import Heads
from updp.candidates.attention.reduce import _smaller_keys, reduced
from updp.errors import UserError

COUNT = st.integers(1, 3)
SIZE = st.integers(2, 5)


def drawn(count: int, size: int, channels: int, seed: int) -> Heads:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (draw(count, size, channels + 1) for _ in range(3))
    return Heads(q, k, v, draw(channels, count * size), draw(channels))


def tokens(channels: int, seed: int, images: int = 3, count: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shift = torch.arange(channels) / 2  # they have a mean, as those behind a norm's shift have
    return torch.randn(images, count, channels, generator=generator, dtype=torch.float64) + shift


def logits(heads: Heads, x: Tensor) -> Tensor:
    """Of all queries with all keys of all images, (heads, N * T, N * T), each key's image centred.

    What is the same for all keys of an image does not get through a softmax.
    """
    x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    q = torch.einsum("hdc,ntc->hntd", heads.query, x).flatten(1, 2)
    k = torch.einsum("hdc,ntc->hntd", heads.key, x)
    return q @ (k - k.mean(2, keepdim=True)).flatten(1, 2).mT


def truncated(matrix: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]


@given(COUNT, SIZE, st.integers(2, 6), st.integers(0, 99), st.data())
def test_smaller_keys_give_the_nearest_logits_of_their_rank(
    count: int, size: int, channels: int, seed: int, data: st.DataObject
) -> None:
    left = data.draw(st.integers(1, size))
    heads, x = drawn(count, size, channels, seed), tokens(channels, seed)
    smaller = _smaller_keys(heads, x, left)
    assert smaller.sizes == (left, size)
    wanted = truncated(logits(heads, x), left)
    assert error(logits(smaller, x), wanted) < 1e-6


@given(SIZE, st.integers(2, 6), st.integers(0, 99), st.data())
def test_smaller_values_give_the_nearest_output_of_their_rank(
    size: int, channels: int, seed: int, data: st.DataObject
) -> None:
    """Of one head: those of several are fitted together after that."""
    left = data.draw(st.integers(1, size - 1))
    heads, x = drawn(1, size, channels, seed), tokens(channels, seed)
    given_, found = heads.attend(x), reduced(heads, x, 1, size, left).attend(x)
    mean = given_.mean((0, 1), keepdim=True)
    best = truncated((given_ - mean).flatten(0, 1), left) + mean[0]
    # The ridge keeps a ten-thousandth away from least squares.
    assert (found - given_).norm() <= 1.01 * (best.view_as(given_) - given_).norm() + 1e-6


def test_of_heads_that_are_alike_one_is_enough() -> None:
    one, x = drawn(2, 3, 5, 0), tokens(5, 1, images=9)
    twice = replace(
        one,
        query=one.query.repeat(2, 1, 1),
        key=one.key.repeat(2, 1, 1),
        value=one.value.repeat(2, 1, 1),
        out=torch.cat([0.3 * one.out, 0.7 * one.out], 1),
    )
    assert error(twice.attend(x), one.attend(x)) < 1e-12
    found = reduced(twice, x, 2, 3, 3)
    assert (found.count, found.sizes) == (2, (3, 3))
    assert error(found.attend(x), one.attend(x)) < 1e-3
    other = tokens(5, 2)
    assert error(found.attend(other), one.attend(other)) < 1e-3


def test_a_head_that_nothing_reads_is_the_first_to_go() -> None:
    heads, x = drawn(3, 4, 5, 3), tokens(5, 4, images=9)
    out = heads.out.clone()
    out[:, 4:8] = 0
    heads = replace(heads, out=out)
    found = reduced(heads, x, 2, 4, 4)
    torch.testing.assert_close(found.query, heads.query[[0, 2]])
    assert error(found.attend(x), heads.attend(x)) < 1e-3


@pytest.mark.parametrize("sizes", [(1, 4, 4), (2, 2, 4), (2, 4, 2), (2, 1, 1)])
def test_constant_tokens_leave_numbers(sizes: tuple[int, int, int]) -> None:
    heads, x = drawn(2, 4, 5, 5), torch.ones(2, 3, 5, dtype=torch.float64)
    found = reduced(heads, x, *sizes).attend(x)
    assert error(found, heads.attend(x)) < 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tokens_that_are_no_numbers_are_one_line(value: float) -> None:
    heads, x = drawn(2, 4, 5, 6), tokens(5, 6)
    x[0, 1, 2] = value
    with pytest.raises(UserError, match="what it reads is infinite, NaN"):
        reduced(heads, x, 2, 2, 4)
