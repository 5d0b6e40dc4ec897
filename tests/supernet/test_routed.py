"""Modules that see only what is routed to them have no targets behind a pruned site."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from updp.blocks import find
from updp.candidates import Drop
from updp.io.progress import Silent
from updp.recipe import FitSettings, ReconstructSettings
from updp.supernet import Supernet, fit_plan
from updp.supernet.routed import routed
from updp.training.reconstruct import reconstruct

C, TOKENS = 8, 6


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(C)
        self.layers = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(self.norm(x))


class Mixture(nn.Module):
    """Each token goes to one of the experts, which are blocks themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(C, 3), nn.ModuleList(Dense() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        weights, best = self.gate(rows).softmax(-1).max(-1)
        y = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            place = (best == number).nonzero()[:, 0]
            y.index_add_(0, place, expert(rows[place]) * weights[place, None])
        return y.view_as(x)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(Dense(), Mixture(), Dense(), nn.Linear(C, 5)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


def images(count: int) -> Tensor:
    return torch.randn(count, TOKENS, C, generator=torch.Generator().manual_seed(count))


def test_experts_are_told_from_what_sees_all() -> None:
    model = network()
    modules = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    found = routed(model, images(10), modules)
    assert found == {name for name in modules if name.startswith("1.experts")}


def test_images_of_other_sizes_are_no_routing() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Linear(4, 2))
    assert routed(model, images(4), {"1": model[1]}) == set()


def test_experts_are_neither_repaired_nor_trained_alone() -> None:
    model, batches = network(), [images(20), images(21), images(22)]
    before = copy.deepcopy(model)
    findings = find(model, images(2))
    net = Supernet(model, findings, {site.name: [Drop()] for site in findings.sites}).eval()
    baseline = Supernet(before, findings, {s.name: [Drop()] for s in findings.sites}).eval()
    rows = fit_plan(net, {"0": "drop"}, batches, FitSettings(rows=1000))
    assert {"2", "3"} <= {row.site for row in rows}
    rows = reconstruct(
        net,
        baseline,
        batches[:2],
        batches[2:],
        ReconstructSettings(epochs=1),
        seed=0,
        megabytes=64,
        progress=Silent(),
    )
    assert [row.site for row in rows] == ["0", "2"]
    experts = zip(net.model[1].experts.parameters(), before[1].experts.parameters(), strict=True)
    assert all(torch.equal(new, old) for new, old in experts)
