"""Layers with adapters lose channels as plain layers, with the weights they amount to."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.blocks.reading.test_composed import (
    Adapted,
    AdaptedConv,
    ConvBlock,
    D,
    FeedForward,
    Weighted,
    WeightedConv,
)
from tests.families import error
from updp.blocks import find
from updp.blocks.reading.composed import plain_layer
from updp.candidates.narrow import narrowing
from updp.candidates.narrow.candidate import Narrow
from updp.recipe import CandidateSettings, FitSettings
from updp.supernet import Supernet, fit_plan

HIDDEN = 9
Wrap = Callable[[nn.Module], nn.Module]


class Gated(nn.Module):
    """A gated feed-forward part, which is no chain."""

    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.gate, self.up, self.down = (
            wrap(nn.Linear(*size)) for size in ((D, HIDDEN), (D, HIDDEN), (HIDDEN, D))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Inside(nn.Module):
    """The feed-forward part is a module inside of the block."""

    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.mlp = nn.Sequential(wrap(nn.Linear(D, HIDDEN)), nn.GELU(), wrap(nn.Linear(HIDDEN, D)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


CASES = {
    "adapted": (FeedForward, Adapted, (7, D)),
    "weighted": (FeedForward, Weighted, (7, D)),
    "gated adapted": (Gated, Adapted, (7, D)),
    "gated weighted": (Gated, Weighted, (7, D)),
    "inside": (Inside, Adapted, (7, D)),
    "convolution": (ConvBlock, AdaptedConv, (D, 9, 8)),
    "computed convolution": (ConvBlock, WeightedConv, (D, 9, 8)),
}


def block(case: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    kind, wrap, size = CASES[case]
    return nn.Sequential(kind(wrap)).eval().double(), torch.randn(64, *size).double()


def supernet(model: nn.Module, x: Tensor) -> Supernet:
    findings = find(model, x[:2])
    (site,) = findings.sites
    settings = CandidateSettings(widths=(0.34,))
    offered = list(Narrow.propose(findings.traced(site, model), settings))
    assert [candidate.kind for candidate in offered] == ["narrow"]
    net = Supernet(model, findings, {site.name: offered}).eval()
    net.choose({name: switch.labels[0] for name, switch in net.switches.items()})
    return net


@torch.no_grad()
def thin_out(model: nn.Module) -> None:
    """Leave three different hidden channels, and give adapters other weights."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if ".norm" not in type(module).__module__:
                nn.init.normal_(parameter, std=0.3)
    for parameter in model.parameters():
        if len(parameter) == HIDDEN:
            parameter.copy_(parameter[: HIDDEN // 3].repeat(3, *[1] * (parameter.ndim - 1)))


@pytest.mark.parametrize("case", CASES)
def test_redundant_channels_of_layers_with_adapters_are_removed_without_loss(case: str) -> None:
    model, x = block(case)
    net = supernet(model, x)
    thin_out(model)  # after the form was built, as when weights are loaded
    wanted = copy.deepcopy(net.baseline())(x)
    choices = {name: switch.choice for name, switch in net.switches.items()}
    fit_plan(net, choices, [x[:32], x[32:]], FitSettings(repair=False))
    assert error(net(x), wanted) < 2e-3
    merged = net.merged(torch.float64)
    assert error(merged(x), net(x)) < 1e-12
    names = [name for name, _ in merged.named_modules()]
    assert not [name for name in names if "base" in name or "down." in name or ".up." in name]


@pytest.mark.parametrize("frozen", ["base", ""])
def test_the_plain_layer_is_trained_if_any_part_is(frozen: str) -> None:
    model, x = block("adapted")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    (form,) = next(iter(supernet(model, x).switches.values())).forms
    layers = [m for m in form.modules() if isinstance(m, nn.Linear)]
    assert {p.requires_grad for layer in layers for p in layer.parameters()} == {bool(frozen)}


def with_hook(layer: nn.Module, kind: str) -> None:
    if kind == "after":
        layer.register_forward_hook(lambda module, args, y: 3 * y)
    else:
        layer.register_forward_pre_hook(lambda module, args: (3 * args[0],))


@pytest.mark.parametrize("kind", ["before", "after"])
def test_what_a_hook_does_stays_where_channels_are_removed(kind: str) -> None:
    model, x = block("gated adapted")
    with_hook(model[0].gate, kind)
    with_hook(model[0].up.dropout, kind)
    net = supernet(model, x)
    thin_out(model)
    wanted = copy.deepcopy(net.baseline())(x)
    choices = {name: switch.choice for name, switch in net.switches.items()}
    fit_plan(net, choices, [x[:32], x[32:]], FitSettings(repair=False))
    assert error(net(x), wanted) < 2e-3
    assert error(net.merged(torch.float64)(x), net(x)) < 1e-12


def test_a_layer_made_plain_that_computes_something_else_is_no_narrow_form(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def doubled(module: nn.Module, graph: fx.Graph) -> nn.Module:
        layer = plain_layer(module, graph)
        with torch.no_grad():
            layer.get_parameter("weight").mul_(2)
        return layer

    monkeypatch.setattr(narrowing, "plain_layer", doubled)
    caplog.set_level(logging.INFO, "updp")
    model, x = block("gated adapted")
    findings = find(model, x[:2])
    traced = findings.traced(findings.sites[0], model)
    assert not list(Narrow.propose(traced, CandidateSettings(widths=(0.34,))))
    assert "a layer that it combines of others is read as another one" in caplog.text
