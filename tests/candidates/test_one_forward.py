"""Many sites in one forward, pruned in every mixture of kinds, by models that share none of ours.

A module whose forward calls all of its parts is one block with many sites. What replaces one site
then stands beside what replaces another, begins where it ended, or reads what it made.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import error, randomise
from updp.blocks import find
from updp.blocks.nested import Samples, as_samples, call, tensors_in
from updp.candidates import proposals
from updp.recipe import CandidateSettings, FitSettings, MergeSettings
from updp.stages.verify import verify
from updp.supernet import Supernet, fit_plan
from updp.tasks import Task

C, HEADS = 16, 2
SETTINGS = CandidateSettings(drop="always", fold_norms=True, linear="always", widths=(0.75, 0.5))
TRIALS = 6


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(C), nn.Linear(C, C)
        self.query, self.rest = nn.Linear(C, C), nn.Linear(C, 2 * C)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        q = self.query(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        kv = self.rest(x if memory is None else memory)
        k, v = kv.unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(C), nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))


class Decoder(nn.Module):
    """An encoder and a decoder that reads what the encoder's last site gives."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(mlp() for _ in range(2))
        self.own, self.cross, self.mlps = (
            nn.ModuleList(make() for _ in range(2)) for make in (Fused, Attention, mlp)
        )

    def forward(self, memory: Tensor, x: Tensor) -> Tensor:
        for layer in self.encoder:
            memory = memory + layer(memory)
        for own, cross, layer in zip(self.own, self.cross, self.mlps, strict=True):
            x = x + own(x)
            x = x + cross(x, memory)
            x = x + layer(x)
        return x


class Named(nn.Module):
    """Its containers have the names of modules that updp adds; it returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_qkv = nn.ModuleList(nn.Linear(C, 3 * C) for _ in range(2))
        self.attention_out = nn.ModuleList(nn.Linear(C, C) for _ in range(2))
        self.switch0 = nn.ModuleList(mlp() for _ in range(2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for first, last, layer in zip(
            self.attention_qkv, self.attention_out, self.switch0, strict=True
        ):
            q, k, v = first(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v)
            x = x + last(y.transpose(1, 2).flatten(2))
            x = x + layer(x)
        return {"last": x, "mean": x.mean(1)}


class Counted(nn.Module):
    """Its parent counts the children, so that what is added goes into one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(C, C), nn.Linear(C, C)
        self.q, self.p = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(torch.relu(self.a(x)))
        return x + self.p(torch.relu(self.q(x)))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Counted()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) / len([*self.block.children()])


class Convolutions(nn.Module):
    """A ResNet in one forward, with a projection."""

    def __init__(self) -> None:
        super().__init__()
        c = C // 2
        shapes = [(c, c, 1), (c, c, 1), (c, C, 2), (C, C, 1)]
        self.first = nn.ModuleList(nn.Conv2d(i, o, 3, s, 1, bias=False) for i, o, s in shapes)
        self.last = nn.ModuleList(nn.Conv2d(o, o, 3, 1, 1, bias=False) for _, o, _ in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in shapes for _ in range(2))
        self.project = nn.Conv2d(c, C, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        for i, (first, last) in enumerate(zip(self.first, self.last, strict=True)):
            y = F.relu(self.norms[2 * i](first(x)))
            y = self.norms[2 * i + 1](last(y))
            x = F.relu(y + (self.project(x) if i == 2 else x))
        return x


TOKENS, MAPS = (3, 5, C), (3, C // 2, 9, 7)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...], int]] = {
    "encoder and decoder": (Decoder, (TOKENS, (3, 6, C)), 8),
    "names of ours, a dict": (Named, (TOKENS,), 4),
    "counted children": (Counting, (TOKENS,), 2),
    "convolutions": (Convolutions, (MAPS,), 4),
}


def made(kind: str) -> tuple[nn.Module, Samples]:
    make, shapes, _ = MODELS[kind]
    torch.manual_seed(0)
    model = randomise(make()).eval()
    return model, as_samples(tuple(torch.randn(shape) for shape in shapes))


def offered(model: nn.Module, x: Samples) -> tuple[Any, dict[str, list[Any]]]:
    findings = find(model, x)
    return findings, {
        site.name: [*proposals(findings.traced(site, model), SETTINGS)] for site in findings.sites
    }


@pytest.mark.parametrize("kind", MODELS)
def test_every_mixture_of_kinds_is_merged_exactly(kind: str) -> None:
    draw = random.Random(0)
    for _ in range(TRIALS):
        model, x = made(kind)
        with torch.no_grad():
            expected = tensors_in(call(model, x))
        findings, candidates = offered(model, x)
        assert len(candidates) == MODELS[kind][2], findings.unusable
        net = Supernet(model, findings, candidates).eval()
        with torch.no_grad():
            assert error(tensors_in(call(net, x))[0], expected[0]) < 1e-5  # nothing pruned
        net.calibrate(x)
        chosen = {n: draw.choice(of).label for n, of in candidates.items() if draw.random() < 0.8}
        net.choose(chosen)
        verify(net, x, MergeSettings(), task=Task())
        # What is merged is no larger, and holds nothing of the supernet.
        assert not any("switch" in n and "keep" in n for n, _ in net.merged().named_modules())


def test_what_replaces_a_part_of_a_counted_block_copies_no_switch() -> None:
    model, x = made("counted children")
    findings, candidates = offered(model, x)
    assert findings.keep_count
    net = Supernet(model, findings, candidates).eval()
    net.calibrate(x)
    chosen = {n: next(c.label for c in of if c.kind == "narrow") for n, of in candidates.items()}
    fit_plan(net, chosen, [x, x], FitSettings(), task=Task())
    verify(net, x, MergeSettings(), task=Task())


@pytest.mark.parametrize("kind", MODELS)
def test_every_mixture_is_fitted(kind: str) -> None:
    draw = random.Random(1)
    model, x = made(kind)
    findings, candidates = offered(model, x)
    net = Supernet(model, findings, candidates).eval()
    net.calibrate(x)
    for _ in range(2):
        chosen = {n: draw.choice(of).label for n, of in candidates.items() if draw.random() < 0.7}
        fit_plan(net, chosen, [x, x], FitSettings(), task=Task())
        verify(net, x, MergeSettings(), task=Task())
