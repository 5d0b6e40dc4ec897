"""Weights that a forward reads at several places are not repaired at one of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import images, network
from updp.blocks import find
from updp.candidates import Drop
from updp.recipe import CandidateSettings, FitSettings
from updp.supernet import Supernet, fit_plan
from updp.supernet.shared import read_before, shared_sites
from updp.tasks import Task

C = 16


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(C, C), nn.GELU(), nn.Linear(C, C))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ff = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ff(x)


class Called(nn.Module):
    """The layer that a kept block calls is called before all blocks, too."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.pruned, self.kept, self.head = Block(), Block(), nn.Linear(C, 4)
        self.requires_grad_(not frozen)

    def before(self, x: Tensor) -> Tensor:
        return self.kept.ff(x)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(3 * self.before(x))
        return self.head(self.kept(self.pruned(x)))


class Read(Called):
    """The weight of a kept block's layer is read by a function."""

    def before(self, x: Tensor) -> Tensor:
        return F.linear(x, self.kept.ff[0].weight.T)


class Outside(Called):
    """The weight of a layer outside of all blocks is."""

    def before(self, x: Tensor) -> Tensor:
        return F.linear(x, self.head.weight.T @ self.head.weight)


class Scaled(nn.Module):
    """LayerScale of all sites in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(mlp() for _ in range(3))
        self.scales = nn.ParameterList(torch.full((C,), 0.5) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for part, scale in zip(self.parts, self.scales, strict=True):
            x = x + scale * part(x)
        return x


def tokens(count: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(count, 5, C, generator=torch.Generator().manual_seed(seed))


def dropping(model: nn.Module, name: str) -> tuple[Supernet, dict[str, str]]:
    """A supernet in which one site may be dropped and the others stay."""
    findings, settings = find(model, tokens(2)), CandidateSettings(drop="always")
    names = [site.name for site in findings.sites]
    site = findings.sites[names.index(name)]
    traced = findings.traced(site, model)
    candidates = {name: tuple(Drop.propose(traced, settings))}
    net = Supernet(model, findings, candidates, kept=names).eval()
    net.calibrate(tokens(8))
    return net, {name: candidates[name][0].label}


@pytest.mark.parametrize(
    ("make", "left_alone"),
    [
        (Called, "kept"),
        (lambda: Called(frozen=True), "kept"),
        (Read, "kept"),
        (Outside, "head"),
    ],
)
def test_weights_that_are_read_before_their_place_are_not_repaired(
    make: Callable[[], nn.Module], left_alone: str
) -> None:
    def loss(repair: bool) -> tuple[float, list[str]]:
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
            wanted = model(tokens(seed=1))
        flags = [p.requires_grad for p in model.parameters()]
        net, chosen = dropping(model, "pruned")
        batches = [tokens(seed=seed) for seed in range(2, 6)]
        rows = fit_plan(net, chosen, batches, FitSettings(repair=repair), task=Task())
        assert [p.requires_grad for p in net.baseline().parameters()] == flags
        with torch.no_grad():
            off = (net(tokens(seed=1)) - wanted).norm() / wanted.norm()
        return float(off), [row.site for row in rows if row.candidate == "keep"]

    (without, none), (repaired, sites) = loss(False), loss(True)
    assert none == []
    assert left_alone not in sites
    assert repaired < 1.01 * without  # it was twice as much


def test_a_list_of_parameters_shares_nothing() -> None:
    net, chosen = dropping(Scaled().eval(), ":parts.0")
    assert shared_sites(net) == set()
    assert read_before(net, tokens(2), net.all_switches) == set()
    rows = fit_plan(net, chosen, [tokens(), tokens(seed=1)], FitSettings(), task=Task())
    assert {row.site for row in rows} == {":parts.0", ":parts.1", ":parts.2"}


def test_sites_that_share_weights_are_known() -> None:
    model, x = network("basic"), images()
    findings = find(model, x)
    names = [site.name for site in findings.sites]
    assert shared_sites(Supernet(model, findings, {}, kept=names)) == set()
    model = network("basic")
    model.blocks[1].conv1.weight = model.blocks[0].conv1.weight
    findings = find(model, x)
    assert shared_sites(Supernet(model, findings, {}, kept=names)) == {"blocks.0", "blocks.1"}


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(C, C, dtype=torch.complex64) for _ in range(2))

    def forward(self, z: Tensor) -> Tensor:
        y = self.a(z)
        return z + self.b(torch.complex(y.real.relu(), y.imag.relu()))


class Spectral(Called):
    """A complex block stands before the real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.complex = Complex()

    def before(self, x: Tensor) -> Tensor:
        return self.complex(torch.fft.fft(x, norm="ortho")).abs()


def test_complex_layers_are_listed_and_looked_at_like_others() -> None:
    model, x = Spectral().eval(), torch.randn(2, 5, C)
    findings = find(model, x)
    assert [s.block for s in findings.sites] == ["pruned", "kept"]
    listed = {u.name: u.reason for u in findings.unusable}
    assert listed == {"complex": "its tensors hold complex numbers"}
    net = Supernet(model, findings, {s.name: [Drop()] for s in findings.sites})
    places = {"a": model.complex.a, "b": model.complex.b, **net.all_switches}
    assert read_before(net, x, places) == set()
