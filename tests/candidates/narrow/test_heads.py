"""Whole heads of attention that is given a mask, rotates its queries, or groups its keys."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import error
from updp.blocks import find
from updp.blocks.nested import ModelInputs, call
from updp.candidates.narrow.candidate import Narrow
from updp.candidates.narrow.heads import head_channels
from updp.recipe import CandidateSettings, FitSettings
from updp.supernet import Supernet, fit_plan

FIT = FitSettings().model_copy(update={"ridge": (1e-9,), "judged": 0})
C, HEADS, SIZE = 12, 6, 4


def repeated(layer: nn.Linear, heads: int, parts: int = 1) -> None:
    """Make all heads of each part, in a layer, copies of every other one."""
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            two = tensor.view(parts, heads // 2, 2, -1, *tensor.shape[1:])
            two[:, :, 1] = two[:, :, 0]


def rotated(x: Tensor) -> Tensor:
    """Rotary positions of queries or keys (N, heads, T, D)."""
    angles = torch.arange(x.shape[2], dtype=x.dtype, device=x.device)[:, None] / 3
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class Rotary(nn.Module):
    """As decoders have it: the number of heads is nowhere, the size of one is."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.head_dim, self.n_rep = SIZE, HEADS // groups
        self.q, self.k = nn.Linear(C, HEADS * SIZE), nn.Linear(C, groups * SIZE)
        self.v, self.o = nn.Linear(C, groups * SIZE), nn.Linear(HEADS * SIZE, C)
        for layer, count in ((self.q, HEADS), (self.k, groups), (self.v, groups)):
            if groups == HEADS:
                repeated(layer, count)
        if groups < HEADS:  # whole groups, with their queries
            repeated(self.q, groups)
            repeated(self.k, groups)
            repeated(self.v, groups)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (f(x).view(shape).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.n_rep, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(rotated(q), rotated(k), v, attn_mask=mask)
        return self.o(y.transpose(1, 2).reshape(*x.shape[:-1], -1))


class Fused(nn.Module):
    """One layer for queries, keys and values; the number of heads is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.all_head_size = HEADS, HEADS * SIZE
        self.qkv, self.proj = nn.Linear(C, 3 * HEADS * SIZE), nn.Linear(HEADS * SIZE, C)
        repeated(self.qkv, HEADS, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(~mask, -1e9)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, self.all_head_size))


class Bound(Fused):
    """Its code holds its number of heads."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(~mask, -1e9)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, -1))


class Block(nn.Module):
    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(C), attn

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.attn(self.norm(x), mask)


class Net(nn.Module):
    def __init__(self, *attentions: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(Block, attentions))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x


class ByKeyword(Rotary):
    """Its last layer is called with a keyword."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (f(x).view(shape).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(rotated(q), rotated(k), v, attn_mask=mask)
        return self.o(input=y.transpose(1, 2).reshape(*x.shape[:-1], -1))


def inputs() -> ModelInputs:
    mask = (torch.rand(40, 1, 7, 7) > 0.3) | torch.eye(7, dtype=torch.bool)
    return ModelInputs((torch.randn(40, 7, C), mask))


@pytest.mark.parametrize(
    ("make", "unit"),
    [
        (lambda: Rotary(HEADS), SIZE),
        (lambda: Rotary(2), 3 * SIZE),
        (Fused, SIZE),
        (lambda: ByKeyword(HEADS), SIZE),
    ],
)
def test_heads_that_are_copies_go_without_loss(make: type[nn.Module], unit: int) -> None:
    torch.manual_seed(0)
    model, x = Net(make(), make()).eval(), inputs()
    findings = find(model, x[:2])
    for site in findings.sites:
        traced = findings.traced(site, model)
        found = head_channels(traced)
        assert found is not None
        assert (found.count, found.unit) == (HEADS * SIZE, unit)
        assert [*Narrow.propose(traced, CandidateSettings())]
    half = Narrow(0.5)
    with torch.no_grad():
        x = x.to(torch.float64)
        wanted = call(copy.deepcopy(model).double(), x)
        net = Supernet(model, findings, {site.name: [half] for site in findings.sites})
        net, choices = net.double().eval(), {s.name: half.label for s in findings.sites}
        net.choose(choices)
        before = error(call(net, x), wanted)
        fit_plan(net, choices, [x[:20], x[20:]], FIT)
        net.choose(choices)
        assert error(call(net, x), wanted) < 1e-6 < before
        merged = net.merged(torch.float64)
        assert error(call(merged, x), call(net, x)) < 1e-12
    assert [p.shape for p in merged.parameters() if p.shape[1:] == (HEADS * SIZE // 2,)]
    assert not [p.shape for p in merged.parameters() if p.shape[1:] == (HEADS * SIZE,)]


class Inline(Rotary):
    """The attention is the block itself, which is not copied."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + super().forward(x, mask)


def test_heads_go_where_the_attention_is_the_block() -> None:
    torch.manual_seed(0)
    model = Net(nn.Identity(), nn.Identity()).eval()
    model.blocks = nn.ModuleList(Inline(HEADS) for _ in range(2))
    findings = find(model, inputs()[:2])
    for site in findings.sites:
        traced = findings.traced(site, model)
        found = head_channels(traced)
        assert found is not None
        assert (found.targets, found.attributes) == (("q", "k", "v", "o"), {})
        assert [*Narrow.propose(traced, CandidateSettings())]


@pytest.mark.parametrize("zero", [False, True])
def test_attention_that_is_bound_to_its_heads_keeps_them(
    zero: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "updp")
    torch.manual_seed(0)
    model = Net(Bound(), Bound()).eval()
    if zero:  # nothing shows then what the heads are, before they are trained
        for block in model.blocks:
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.attn.proj.bias)
    findings = find(model, inputs()[:2])
    for site in findings.sites:
        traced = findings.traced(site, model)
        assert not [*Narrow.propose(traced, CandidateSettings())]
    text = f"its forward is bound to all channels, it fails with 16 of {HEADS * SIZE}: RuntimeError"
    assert text in caplog.text


class Separate(Fused):
    """As EVA's with a bias of its own: the layer's weight is used, but the layer is not called."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        qkv = F.linear(x, self.qkv.weight, torch.zeros(3 * HEADS * SIZE))
        q, k, v = qkv.reshape(*x.shape[:-1], 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_attention_whose_layers_are_not_called_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "updp")
    model = Net(Separate(), Separate()).eval()
    findings = find(model, inputs()[:2])
    for site in findings.sites:
        traced = findings.traced(site, model)
        assert not [*Narrow.propose(traced, CandidateSettings())]
        text = f"{site.name}: no whole heads can go: it calls no linear layer but `attn.proj`"
        assert text in caplog.text


class Longer(Fused):
    """Gives a token more than its last layer does."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return F.pad(super().forward(x[:, 1:], mask[..., 1:, 1:]), (0, 0, 1, 0))


def test_attention_that_reshapes_what_its_last_layer_gives_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "updp")
    model = Net(Longer(), Longer()).eval()
    findings = find(model, inputs()[:2])
    for site in findings.sites:
        assert head_channels(findings.traced(site, model)) is None
        text = f"{site.name}: no whole heads can go: its output has another shape than that of "
        assert f"{text}`attn.proj`, its last layer" in caplog.text


class Scaled(Block):
    """With LayerScale behind its attention."""

    def __init__(self, start: float) -> None:
        super().__init__(Fused())
        self.gamma = nn.Parameter(torch.full((C,), start))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.gamma * self.attn(self.norm(x), mask)


@pytest.mark.parametrize("start", [0.0, 1e-6, 0.7])
def test_heads_are_found_whatever_a_layer_scale_is(start: float) -> None:
    """A run is loaded into a model that is not trained yet."""
    torch.manual_seed(0)
    model, x = Net().eval(), inputs()
    model.blocks = nn.ModuleList(Scaled(start) for _ in range(2))
    findings = find(model, x[:2])
    half = Narrow(0.5)
    net = Supernet(model, findings, {site.name: [half] for site in findings.sites})
    net, choices = net.double().eval(), {s.name: half.label for s in findings.sites}
    with torch.no_grad():
        for block in net.model.blocks:
            block.gamma.fill_(0.7)
        x = x.to(torch.float64)
        net.choose({})
        wanted = call(net, x)
        fit_plan(net, choices, [x[:20], x[20:]], FIT)
        net.choose(choices)
        assert error(call(net, x), wanted) < 1e-6
