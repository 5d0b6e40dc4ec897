"""Blocks of windows: their number of samples is made by `int` and the like from sizes."""

from __future__ import annotations

import copy
import functools
import io
import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.road import prune_half
from updp.blocks import find
from updp.candidates import proposals
from updp.deploy.export.program import capture
from updp.recipe import CandidateSettings, FitSettings
from updp.supernet import Supernet, fit_plan

D, W = 8, 4  # channels; side of a map of W x W tokens, in windows of W / 2 tokens

Count = Callable[[Tensor], Any]


def decorated(function: Count) -> Count:
    @functools.wraps(function)
    def inner(windows: Tensor) -> Any:
        assert not isinstance(windows.shape, int)
        return int(function(windows))

    return inner


def by_int(windows: Tensor) -> Any:
    kind: type[int] = int
    assert type(W) == kind  # noqa: E721
    assert issubclass(bool, kind)
    assert type(W) in (float, int)
    assert (int("3"), int("ff", 16)) == (3, 255)
    return int(windows.shape[0] / (W * W / 2 / 2))


def in_a_loop(windows: Tensor) -> Any:
    return sum([int(n / 4) for n in windows.shape[:1]])


def by_map(windows: Tensor) -> Any:
    return next(map(int, [windows.shape[0] / 4]))


def in_an_inner_function(windows: Tensor) -> Any:
    def whole(number: float) -> int:
        return int(number)

    return whole(windows.shape[0] / 4)


def by_round(windows: Tensor) -> Any:
    return round(windows.shape[0] / 4)


def by_floor(windows: Tensor) -> Any:
    return math.floor(windows.shape[0] / 4)


def by_ceil(windows: Tensor) -> Any:
    return math.ceil(windows.shape[0] / 4)


def by_truncation(windows: Tensor) -> Any:
    return math.trunc(windows.shape[0] / 4)


@decorated
def behind_a_decorator(windows: Tensor) -> Any:
    return windows.shape[0] / 4


COUNTS = (
    *(by_int, in_a_loop, by_map, in_an_inner_function, by_round, by_floor, by_ceil, by_truncation),
    behind_a_decorator,
)


class Windows(nn.Module):
    def __init__(self, count: Count) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(D), nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).view(-1, W // 2, W // 2, D)
        y = self.b(self.a(y).relu())
        y = y.view(self.count(y), W * W, D) if self.count is not by_half else by_half(y)
        return x + y


def by_half(y: Tensor) -> Tensor:
    return y.view(int(y.shape[0] / 2), 2 * W, D).view(-1, W * W, D)


class Net(nn.Module):
    def __init__(self, count: Count, blocks: int = 2) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, D, 2, 2), nn.Linear(D, 5)
        self.blocks = nn.Sequential(*(Windows(count) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x).flatten(2).transpose(1, 2))
        return self.head(x.mean(1))


def made(count: Count, blocks: int = 2) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    return Net(count, blocks).eval(), torch.randn(3, 3, 2 * W, 2 * W)


@pytest.mark.parametrize("count", [*COUNTS, by_half], ids=operator.attrgetter("__name__"))
def test_a_whole_number_made_of_a_size_is_a_node(count: Count) -> None:
    found = find(*made(count))
    assert [site.name for site in found.sites] == ["blocks.0:a", "blocks.1:a"]
    assert not found.modal
    assert "int" not in globals()


def test_the_reason_names_what_makes_a_constant_of_a_size() -> None:
    class Sized(Windows):
        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0].__int__()
            return super().forward(x[:n].reshape(n, W * W, D))

    net, x = made(by_int)
    net.blocks[0] = Sized(by_int).eval()
    found = find(net, x)
    assert [site.name for site in found.sites] == ["blocks.1:a"]
    (unusable,) = found.unusable
    assert unusable.reason.startswith("its graph holds for one number of images only: `int(...)`")
    assert unusable.reason.endswith("of `forward` makes a constant of a size")


@pytest.mark.skipif(not hasattr(Dim, "AUTO"), reason="PyTorch before 2.6 has no such symbols")
@pytest.mark.parametrize("count", COUNTS, ids=operator.attrgetter("__name__"))
def test_a_merged_model_takes_other_batches_and_is_kept_and_exported(count: Count) -> None:
    net, x = made(count, blocks=1)
    merged = prune_half(net, x).eval()
    file = io.BytesIO()
    torch.save(merged, file)
    file.seek(0)
    program = capture(merged, x)
    assert program.dynamic == ("batch",)
    others = (torch.load(file, weights_only=False), copy.deepcopy(merged))
    for number in (1, 2, 5):
        images = torch.randn(number, *x.shape[1:])
        expected = merged(images)
        assert all(torch.equal(other(images), expected) for other in others)
        assert torch.allclose(program.exported.module()(images), expected, atol=1e-6)


def plainly(number: Any) -> int:
    return int(number)


# `int` behind another name leaves no node.
NUMBERS = (plainly, int, round, math.floor, math.ceil, math.trunc)


class Excited(nn.Module):
    """A convolution with a gate for each sample and channel, which counts its samples."""

    def __init__(self, whole: Callable[[Any], int]) -> None:
        super().__init__()
        self.conv, self.gate, self.whole = nn.Conv2d(D, D, 3, padding=1), nn.Linear(D, D), whole

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * self.gate(y.mean((2, 3))).sigmoid().view(self.whole(y.shape[0] * 1.0), D, 1, 1)


class GatedTokens(nn.Module):
    """A gated part that counts its samples."""

    def __init__(self, whole: Callable[[Any], int]) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(D, 32), nn.Linear(D, 32), nn.Linear(32, D)
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        n, tokens = self.whole(x.shape[0] * 1.0), x.shape[1]
        return self.down(self.up(x).view(n, tokens, -1).relu() * self.gate(x).sigmoid())


class Around(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.parts(x)


@pytest.mark.parametrize("whole", NUMBERS, ids=operator.attrgetter("__name__"))
@pytest.mark.parametrize("kind", ["maps", "tokens"])
def test_what_is_read_inside_a_branch_is_for_every_number_of_samples(
    whole: Callable[[Any], int], kind: str
) -> None:
    torch.manual_seed(0)
    block = Around(Excited(whole), nn.ReLU(), nn.Conv2d(D, D, 1))
    if kind == "tokens":
        block = Around(nn.LayerNorm(D), GatedTokens(whole))
    model, x = nn.Sequential(block).eval(), torch.randn(40, W, D)
    x = x if kind == "tokens" else torch.randn(40, D, 5, 4)
    findings, kinds = find(model, x[:2]), set()
    for site in findings.sites:
        for candidate in proposals(findings.traced(site, model), CandidateSettings(drop="always")):
            net = Supernet(copy.deepcopy(model), findings, {site.name: [candidate]}).eval()
            choices = {site.name: candidate.label}
            net.choose(choices)
            fit_plan(net, choices, [x[:7], x[7:]], FitSettings(repair=False))
            for number in (1, 5):
                alone = torch.cat([net(sample[None]) for sample in x[:number]])
                torch.testing.assert_close(net.merged()(x[:number]), alone, rtol=1e-4, atol=1e-4)
            kinds.add(candidate.kind)
    assert ("narrow" in kinds) == (kind == "tokens" and whole is not int)
