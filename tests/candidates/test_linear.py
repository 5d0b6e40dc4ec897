from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import C, Concatenated, Net, error, images, network, randomise
from tests.supernet.test_supernet import Crossed
from updp.blocks import find
from updp.candidates import OneLinear
from updp.recipe import CandidateSettings


def proposed(model: nn.Module, linear: str = "local") -> list[list[OneLinear]]:
    found = find(model, images())
    settings = CandidateSettings(linear=linear)  # type: ignore[arg-type]
    return [[*OneLinear.propose(found.traced(s, model), settings)] for s in found.sites]


@pytest.mark.parametrize(
    ("family", "candidate", "label"),
    [
        ("gated", OneLinear(), "linear"),
        ("gated_map", OneLinear(), "linear"),
        ("wavenet", OneLinear((2,), (3,), ((3, 0),)), "linear 2"),
        ("concatenated", OneLinear((3, 3), (1, 1), ((1, 1), (1, 1))), "linear 3x3"),
    ],
)
def test_the_operator_reads_what_the_branch_reads(
    family: str, candidate: OneLinear, label: str
) -> None:
    assert proposed(network(family)) == [[candidate]] * 2
    assert candidate.label == label
    assert proposed(network(family), "never") == [[], []]


def test_attention_is_replaced_only_where_it_is_asked_for() -> None:
    attention, mlp = proposed(network("vit"))[:2]
    assert (attention, mlp) == ([], [])
    assert proposed(network("vit"), "always")[:2] == [[OneLinear()], []]


def test_causal_attention_is_no_local_branch() -> None:
    """Its mask is one-sided, and its norm takes out what is the same in all channels."""
    assert proposed(randomise(Crossed()).eval())[0] == []


def test_a_branch_that_tells_nothing_has_none() -> None:
    """Its last weights are zero, as they are when training begins."""
    model = network("gated")
    for block in model.blocks:
        nn.init.zeros_(block.down.weight)
    assert proposed(model) == [[], []]


class Joined(Concatenated):
    """Linear, by paths that are joined."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 3, 1, 2)
        return x + self.c(torch.cat([self.a(y), self.b(y)], 1).permute(0, 2, 3, 1))


def test_a_branch_that_is_linear_is_found_from_its_values() -> None:
    torch.manual_seed(0)
    model = randomise(Net([Joined(C), Joined(C)], "nhwc")).eval()
    found = find(model, images())
    traced = found.traced(found.sites[0], model)
    ((candidate,), _) = proposed(model)
    form = candidate.build(traced)
    x = torch.randn(40, 9, 7, C)
    form.calibrate(x)
    assert error(form(x), traced.block(x)) < 1e-3


class OnGrid(nn.Module):
    """A gated part with a convolution on the grid of its tokens, which lie row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(C, 2 * C), nn.Linear(C, C)
        self.deep = nn.Conv2d(2 * C, 2 * C, 3, padding=1, groups=2 * C)

    def forward(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        y = self.deep(self.up(x).transpose(1, 2).unflatten(2, (side, side)))
        gate, value = y.flatten(2).transpose(1, 2).chunk(2, -1)
        return x + self.down(F.gelu(gate) * value)


@pytest.mark.parametrize("side", [4, 5, 7, 8])
def test_a_map_whose_rows_follow_one_another_is_no_sequence(side: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(OnGrid()).eval()
    found = find(model, torch.randn(2, side**2, C))
    assert not [*OneLinear.propose(found.traced(found.sites[0], model), CandidateSettings())]


class GatedTokens(nn.Module):
    """A convolution on tokens, and a product that is 0 for most of its inputs."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.a = nn.LayerNorm(channels), nn.Conv1d(channels, 2 * hidden, 9, padding=4)
        self.b = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.a(self.norm(x).transpose(1, 2)).transpose(1, 2).chunk(2, -1)
        return x + self.b(F.relu(y) * F.relu(gate))


@pytest.mark.parametrize(("channels", "hidden"), [(4, 2), (8, 4), (16, 8)])
@pytest.mark.parametrize("seed", range(4))
def test_what_a_gate_hides_in_one_map_is_seen_in_others(
    channels: int, hidden: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(GatedTokens(channels, hidden)).eval()
    found = find(model, torch.randn(2, 32, channels))
    traced = found.traced(found.sites[0], model)
    (candidate,) = OneLinear.propose(traced, CandidateSettings())
    assert candidate == OneLinear((9,), (1,), ((4, 4),))
    assert candidate.build(traced).linear.free is None  # none of its taps is taken for masked
