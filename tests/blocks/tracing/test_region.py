from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from tests.blocks.tracing.graphs import residual_regions
from tests.road import prune_half
from updp.blocks import find
from updp.blocks.tracing.region import whole_region
from updp.blocks.tracing.trace import trace_alone


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Identity() for _ in range(4))


def graph_of(forward: Callable[..., object]) -> fx.Graph:
    return trace_alone(type("Traced", (Block,), {"forward": forward})())


@pytest.mark.parametrize(
    "add",
    [
        lambda x, y: x + y,
        lambda x, y: y + x,
        lambda x, y: torch.add(x, y),
        lambda x, y: torch.add(input=x, other=y),
        lambda x, y: y.add_(x),
        lambda x, y: x.add(other=y),
    ],
)
def test_adds_are_found_in_every_spelling(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    (region,) = residual_regions(graph_of(lambda self, x: add(x, self.b(self.a(x)))))
    assert (region.entry, region.branch, region.skip) == ("x", ("a", "b"), ())
    assert region.add == region.exit


def test_in_place_adds_are_residual_adds() -> None:
    def forward(self: Block, x: Tensor) -> Tensor:
        y = self.a(x)
        y += x
        return y

    (region,) = residual_regions(graph_of(forward))
    assert (region.entry, region.branch) == ("x", ("a",))


def test_the_longer_path_is_the_branch() -> None:
    (region,) = residual_regions(graph_of(lambda self, x: self.b(self.a(x)) + self.c(x)))
    assert (region.branch, region.skip) == (("a", "b"), ("c",))
    (region,) = residual_regions(graph_of(lambda self, x: self.c(x) + self.b(self.a(x))))
    assert (region.branch, region.skip) == (("a", "b"), ("c",))


@pytest.mark.parametrize("add", [lambda x, y: x + y, lambda x, y: y + x])
def test_the_identity_is_never_the_branch(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    (region,) = residual_regions(graph_of(lambda self, x: add(x, torch.tanh(x))))
    assert (region.entry, region.branch, region.skip) == ("x", ("tanh",), ())


def test_a_region_may_start_behind_the_input() -> None:
    """MBConv with a stem, pre-activation with a shared first norm."""

    def forward(self: Block, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.d(self.c(self.b(y)) + y)

    (region,) = residual_regions(graph_of(forward))
    assert (region.entry, region.branch, region.exit) == ("a", ("b", "c"), "add")


def test_consecutive_branches_are_separate_regions() -> None:
    def forward(self: Block, x: Tensor) -> Tensor:
        x = x + self.a(x)
        return x + self.b(x)

    first, second = residual_regions(graph_of(forward))
    assert (first.entry, first.exit) == ("x", "add")
    assert (second.entry, second.branch, second.exit) == ("add", ("b",), "add_1")


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.a(x) + 1,
        lambda self, x, y: self.a(x) + self.b(y),
        lambda self, x: (lambda y: y + y)(self.a(x)),
        lambda self, x: (lambda y: (x + self.b(y), y))(self.a(x)),
        lambda self, x: (lambda y: self.c(x + self.b(y)) * y)(self.a(x)),
    ],
    ids=["constant", "two inputs", "itself", "an inner value is returned", "... or used"],
)
def test_adds_without_a_common_fork_are_not_residual(forward: Callable[..., object]) -> None:
    assert residual_regions(graph_of(forward)) == []


def test_a_branch_may_read_a_further_argument() -> None:
    graph = graph_of(lambda self, x, mask=None: x + self.b(self.a(x, mask)))
    (region,) = residual_regions(graph)
    assert (region.entry, region.branch) == ("x", ("a", "b"))


def test_whole_region_runs_from_input_to_output() -> None:
    region = whole_region(graph_of(lambda self, x: self.b(self.a(x))))
    assert region is not None
    assert (region.entry, region.branch, region.exit) == ("x", ("a", "b"), "b")
    assert region.add is None


def test_whole_region_needs_one_input_and_one_output() -> None:
    assert whole_region(graph_of(lambda self, x: (self.a(x), self.b(x)))) is None
    assert whole_region(graph_of(lambda self, x, y: self.a(x) * y)) is None
    assert whole_region(graph_of(lambda self, x, y: self.a(x))) is not None


class Divided(nn.Module):
    """Attention in time, then in space, as TimeSformer has it: both read sizes of the input."""

    def __init__(self, width: int = 8, places: int = 3) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.time, self.space = (
            nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(2)
        )
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))
        self.places = places

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        frames = tokens // self.places
        y = self.norms[0](x).view(n, frames, self.places, width).transpose(1, 2)
        y = y.reshape(n * self.places, frames, width)
        y = self.time(y, y, y, need_weights=False)[0].reshape(n, self.places, frames, width)
        x = x + y.transpose(1, 2).reshape(n, tokens, width)
        y = self.norms[1](x).view(n * frames, self.places, width)
        x = x + self.space(y, y, y, need_weights=False)[0].reshape(n, tokens, width)
        return x + self.mlp(self.norms[2](x))


def test_sizes_that_later_branches_read_too_do_not_end_a_branch() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Divided(), Divided()).eval(), torch.randn(4, 12, 8)
    names = [f"{block}:{part}" for block in (0, 1) for part in ("time", "space", "mlp")]
    findings = find(model, x)
    assert [site.name for site in findings.sites] == names
    assert not findings.unusable
    with torch.no_grad():
        merged = prune_half(model, x).eval()
        for number, frames in ((1, 4), (5, 4), (3, 2)):
            images = torch.randn(number, 3 * frames, 8)
            assert merged(images).shape == images.shape
            alone = torch.cat([merged(image[None]) for image in images])
            torch.testing.assert_close(merged(images), alone)
