"""Peaks against sums by hand, and the peak of a model from those of its parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from updp.measure import SiteMemory, live_at, peak_memory

sizes = st.integers(1, 7)


class Function(nn.Module):
    """A module that is one function of its inputs."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs)


def peak(function: Callable[..., object], *inputs: Tensor) -> int:
    return peak_memory(Function(function).eval(), *inputs).peak


class Map(NamedTuple):
    """Bytes of a feature map (n, c, h, w) by its channels."""

    n: int
    h: int
    w: int

    def __call__(self, channels: int) -> int:
        return 4 * self.n * channels * self.h * self.w


@given(sizes, sizes, sizes, sizes, sizes, sizes)
def test_activations_count_until_freed(n: int, h: int, w: int, a: int, b: int, c: int) -> None:
    of, x = Map(n, h, w), torch.randn(n, a, h, w)
    first, last = nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, c, 1, bias=False)
    weights = 4 * (9 * a * b + b + b * c)
    # The caller holds the input until the end; what an operator reads, until it has written.
    apart = nn.Sequential(first, nn.ReLU(), last).eval()
    expected = of(a) + max(of(b) + of(b), of(b) + of(c))
    found = peak_memory(apart, x)
    assert (found.peak, found.weights, found.inputs) == (expected, weights, of(a))
    assert found.own == expected - of(a)
    in_place = nn.Sequential(first, nn.ReLU(inplace=True), last).eval()
    assert peak_memory(in_place, x).peak == of(a) + of(b) + of(c)


@given(sizes, sizes, sizes, sizes, sizes)
def test_adds_and_concatenations_count_their_operands(
    n: int, h: int, w: int, a: int, b: int
) -> None:
    of, x = Map(n, h, w), torch.randn(n, a, h, w)
    same, other = nn.Conv2d(a, a, 1), nn.Conv2d(a, b, 1)
    assert peak(lambda x: x + same(x), x) == 3 * of(a)
    assert peak(lambda x: same(x).add_(x), x) == 2 * of(a)
    assert peak(lambda x: x.add_(same(x)), x) == 2 * of(a)
    assert peak(lambda x: torch.cat([x, other(x)], 1), x) == of(a) + of(b) + of(a + b)
    assert peak(lambda x: [other(x), other(x), other(x)][0], x) == of(a) + 3 * of(b)


@given(sizes, sizes, sizes, sizes)
def test_views_share_the_storage_of_their_base(n: int, h: int, w: int, a: int) -> None:
    of, x = Map(n, h, w), torch.randn(n, a, h, w)
    one = of(a)
    assert peak(lambda x: x.flatten(1).unsqueeze(0).transpose(0, 1)[:, :, :1], x) == one
    assert peak(lambda x: [part.relu_() for part in x.chunk(2, 1)], x) == one
    assert peak(lambda x: (x.neg().flatten(1)[:, :1], None), x) == 2 * one  # a view keeps it alive
    assert peak(lambda x: x.permute(0, 2, 3, 1).clone(), x) == 2 * one
    assert peak(lambda x: x.neg().view(-1).neg().view(x.shape).neg(), x) == 3 * one


def test_freed_activations_no_longer_count() -> None:
    x = torch.randn(100)

    def freed(x: Tensor) -> Tensor:
        for _ in range(5):
            y = x.neg()
            del y
        return x.neg()

    assert peak(freed, x) == 800
    assert peak(lambda x: [x.neg() for _ in range(5)], x) == 2400


def test_bytes_follow_the_dtype() -> None:
    x = torch.randn(100)
    assert peak(lambda x: x.double(), x) == 400 + 800
    assert peak(lambda x: x > 0, x) == 400 + 100
    assert peak(lambda x: torch.zeros(7, dtype=torch.int16), x) == 400 + 14
    assert peak_memory(nn.BatchNorm2d(3).eval(), torch.ones(1, 3, 1, 1)).weights == 4 * 3 * 4 + 8


def test_composite_operators_count_by_their_parts() -> None:
    x = torch.randn(2, 3, 5, 5)
    conv = nn.Conv2d(3, 4, 2, padding="same", bias=False)  # pads one side first
    with warnings.catch_warnings(action="ignore"):  # which torch says too
        assert peak(conv, x) == 4 * 2 * (3 * 25 + 3 * 36 + 4 * 25)


def test_attention_counts_its_score_matrix() -> None:
    def attend(x: Tensor) -> Tensor:  # (n, length, 3 * width)
        q, k, v = x.chunk(3, -1)
        return F.softmax(q @ k.transpose(-1, -2), -1) @ v

    for n, length, width in ((2, 5, 4), (3, 2, 7)):
        x = torch.randn(n, length, 3 * width)
        scores, values = 4 * n * length * length, 4 * n * length * width
        assert peak(attend, x) == x.nbytes + max(2 * scores, scores + values)


def test_constants_are_no_activations_and_shared_weights_count_once() -> None:
    constant, one = torch.randn(100), nn.Linear(10, 10, bias=False)
    assert peak(lambda x: x + constant.view(10, 10), torch.randn(10, 10)) == 800
    assert peak_memory(nn.Sequential(one, one).eval(), torch.randn(1, 10)).weights == 400


def test_inputs_are_copied_and_nothing_is_left_behind() -> None:
    x = torch.randn(2, 3)
    before = x.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3)).eval()
    live_at(model, {"a": model[0]}, x)
    assert x.equal(before)
    assert model[1].weight.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    inputs = (x[:, :2], [x, None], 3)  # bytes of what is used, not of what it is a part of
    assert peak_memory(Function(lambda *_: None).eval(), *inputs).inputs == 4 * (4 + 6)


def test_a_module_in_training_mode_is_an_assertion_error() -> None:
    with pytest.raises(AssertionError, match="training mode"):
        peak_memory(nn.Identity(), torch.ones(1))


# -- parts ----------------------------------------------------------------------------------------


class Wide(nn.Module):
    """A residual block that is `wide` times as wide inside, or not a residual one."""

    def __init__(self, channels: int, wide: int, residual: bool, in_place: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, wide * channels, 1)
        self.act = nn.ReLU(inplace=in_place)
        self.last = nn.Conv2d(wide * channels, channels, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.act(self.first(x)))
        return x + y if self.residual else y


class Net(nn.Module):
    """Three blocks under a long skip, the middle one called twice, and a head that may be wide."""

    def __init__(self, blocks: list[nn.Module], channels: int, head: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 1)
        self.a, self.b, self.c = blocks
        self.head = nn.Conv2d(2 * channels, head, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.b(self.a(x))
        y = self.c(self.b(y))
        return self.head(torch.cat([x, y], 1))


@st.composite
def blocks(draw: st.DrawFn, channels: int) -> list[nn.Module]:
    flags = st.booleans()
    return [Wide(channels, draw(st.integers(1, 4)), draw(flags), draw(flags)) for _ in range(3)]


@given(st.data(), st.integers(1, 3), st.sampled_from([1, 8, 64]))
def test_the_peak_with_replaced_parts_follows_from_the_parts(
    data: st.DataObject, channels: int, head: int
) -> None:
    present, others = data.draw(blocks(channels)), data.draw(blocks(channels))
    model, x = Net(present, channels, head).eval(), torch.randn(2, 2, 3, 3)
    names = data.draw(st.lists(st.sampled_from("abc"), unique=True))
    outside, sites = live_at(model, {name: getattr(model, name) for name in names}, x)
    for name in names:
        replacement = others["abc".index(name)].eval()
        own = peak_memory(replacement, torch.randn(2, channels, 3, 3)).own
        stays = data.draw(st.booleans())
        added = sites[name].peak - sites[name].entry
        outside = max(outside, sites[name].entry + (added if stays else own))
        if not stays:
            setattr(model, name, replacement)
    assert peak_memory(model, x).peak == outside


def test_memory_of_each_part_by_hand() -> None:
    one = 4 * 2 * 3 * 3 * 3  # bytes of a feature map
    present = [Wide(3, 4, residual=True, in_place=False) for _ in range(3)]
    model = Net(present, 3, 1).eval()
    image = torch.randn(2, 3, 3, 3)[:, :2]
    outside, sites = live_at(model, {"a": model.a, "b": model.b, "head": model.head}, image)
    given_ = 4 * 2 * 2 * 3 * 3
    # In a, beside the image: its input, then the wide map and its activation.
    assert sites["a"] == SiteMemory(given_ + one, given_ + one + 8 * one)
    # Called again, b has the stem's output, its own and its new one beside it.
    assert sites["b"] == SiteMemory(given_ + 2 * one, given_ + 2 * one + 8 * one)
    assert sites["head"].peak - sites["head"].entry == 4 * 2 * 3 * 3
    # c stays outside: the stem's output, the first one of b and c's input are there.
    assert outside == given_ + 3 * one + 8 * one


def test_nested_parts_count_and_uncalled_parts_are_left_out() -> None:
    inner = nn.Sequential(nn.ReLU(), nn.ReLU())
    model = nn.Sequential(inner, nn.ReLU()).eval()
    parts = {"inner": inner, "first": inner[0], "unused": nn.ReLU()}
    outside, sites = live_at(model, parts, torch.randn(100))
    assert sites == {"first": SiteMemory(400, 800), "inner": SiteMemory(400, 1200)}
    assert outside == 1200
    assert live_at(model, {"": model}, torch.randn(100)) == (800, {"": SiteMemory(400, 1200)})


def test_meta_tensors_give_the_same_figures() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(392, 5)).eval()
    x = torch.randn(2, 3, 9, 9)
    assert peak_memory(model, x) == peak_memory(model.to("meta"), x.to("meta"))
