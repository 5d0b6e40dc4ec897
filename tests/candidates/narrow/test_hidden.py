"""Hidden channels of branches that are no chains: gated parts, blocks with a second input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import error
from updp.blocks import find
from updp.blocks.nested import ModelInputs, call
from updp.candidates import read_candidate
from updp.candidates.narrow.candidate import Narrow
from updp.candidates.narrow.hidden import HiddenChannels, hidden_channels
from updp.errors import UserError
from updp.recipe import CandidateSettings, FitSettings
from updp.supernet import Supernet, fit_plan

FIT = FitSettings().model_copy(update={"ridge": (1e-9,), "judged": 0})
C, H = 8, 48


def repeated(module: nn.Linear | nn.Conv2d, unit: int = 1, parts: int = 1) -> None:
    """Make the output channels, in units, of each part three times the same ones."""
    with torch.no_grad():
        for tensor in (module.weight, module.bias):
            third = tensor.view(parts, 3, -1, unit, *tensor.shape[1:])
            third[:, 1:] = third[:, :1]


class Gated(nn.Module):
    """SwiGLU, written in the block's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.down = nn.LayerNorm(C), nn.Linear(H, C)
        self.gate, self.up = nn.Linear(C, H), nn.Linear(C, H)
        for module in (self.gate, self.up):
            repeated(module)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Packed(nn.Module):
    """Both halves by one layer, in a module within a module, as diffusers has them."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(C, 2 * H)
        repeated(self.proj, parts=2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleList([Packed(), nn.Dropout(0.1), nn.Linear(H, C)])

    def forward(self, x: Tensor) -> Tensor:
        for module in self.net:
            x = module(x)
        return x


class WithFeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.ff, self.scale = nn.LayerNorm(C), FeedForward(), nn.Parameter(torch.rand(C))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.ff(self.norm(x))


class GatedHalf(nn.Module):
    """A gate of its own between two layers."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


class Halved(nn.Module):
    """Layers in a row, with a gate between that has half as many outputs as inputs."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        up = nn.Linear(C, 2 * H)
        repeated(up, parts=2)
        self.norm = nn.LayerNorm(C)
        self.net = nn.Sequential(up, nn.Sequential(gate, nn.Dropout(0.1)), nn.Linear(H, C))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(self.norm(x))


class GatedMaps(nn.Module):
    """Restormer's: the halves of maps are parted behind a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.BatchNorm2d(C), nn.Conv2d(C, 2 * H, 1)
        self.deep, self.bn = (
            nn.Conv2d(2 * H, 2 * H, 3, padding=1, groups=2 * H),
            nn.BatchNorm2d(2 * H),
        )
        self.down = nn.Conv2d(H, C, 1)
        for module in (self.up, self.deep):
            repeated(module, parts=2)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.bn(self.deep(self.up(self.norm(x)))).chunk(2, dim=1)
        return x + self.down(F.gelu(gate) * value)


class Multiplied(nn.Module):
    """StarNet's: what reads the product of two layers is inside a module of the block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(C, H, 1), nn.Conv2d(C, H, 1)
        for module in (self.a, self.b):
            repeated(module)
        self.down = nn.Sequential(nn.Conv2d(H, C, 1), nn.BatchNorm2d(C))
        self.deep = nn.Conv2d(C, C, 3, padding=1, groups=C)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.deep(self.down(F.relu6(self.a(x)) * self.b(x)))


class Conformer(nn.Module):
    """The convolutions of a Conformer, gated along their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(C), nn.Conv1d(C, 2 * H, 1)
        self.deep, self.bn = nn.Conv1d(H, H, 3, padding=1, groups=H), nn.BatchNorm1d(H)
        self.down = nn.Conv1d(H, C, 1)
        repeated(self.up, parts=2)
        repeated(self.deep)

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.up(self.norm(x).transpose(1, 2)), dim=1)
        return x + self.down(F.silu(self.bn(self.deep(y)))).transpose(1, 2)


class Depthwise(nn.Module):
    """A convolution on tokens that lie on a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(H, H, 3, padding=1, groups=H)
        repeated(self.conv)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        n, _, c = x.shape
        y = self.conv(x.transpose(1, 2).reshape(n, c, height, width))
        return y.flatten(2).transpose(1, 2)


class MixFeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.deep, self.down = nn.Linear(C, H), Depthwise(), nn.Linear(H, C)
        repeated(self.up)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        return self.down(F.gelu(self.deep(self.up(x), height, width)))


class Mixing(nn.Module):
    """A block of SegFormer or PVTv2, which is told the size of the grid."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(C), MixFeedForward()

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        return x + self.mlp(self.norm(x), height, width)


class MixingNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Mixing(), Mixing()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        return self.two(self.one(x, height, width), height, width)


class Timed(nn.Module):
    """A block of a diffusion network; with `film` the embedding also scales."""

    def __init__(self, film: bool) -> None:
        super().__init__()
        self.film = film
        self.norm1, self.conv1 = nn.GroupNorm(2, C), nn.Conv2d(C, H, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(12, H), nn.Conv2d(H, C, 3, padding=1)
        self.emb = nn.Linear(5, (1 + film) * H)
        repeated(self.conv1, 4)
        repeated(self.emb, 4, 1 + film)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y, emb = self.conv1(F.silu(self.norm1(x))), self.emb(F.silu(t))[:, :, None, None]
        if self.film:
            scale, shift = emb.chunk(2, dim=1)
            y = self.norm2(y) * (1 + scale) + shift
        else:
            y = self.norm2(y + emb)
        return x + self.conv2(F.silu(y))


class TimedNet(nn.Module):
    def __init__(self, film: bool) -> None:
        super().__init__()
        self.one, self.two = Timed(film), Timed(film)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.two(self.one(x, t), t)


def tokens() -> Tensor:
    return torch.randn(40, 7, C)


def maps() -> ModelInputs:
    return ModelInputs((torch.randn(40, C, 6, 5), torch.randn(40, 5)))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, int], list[str]]] = {
    "gated": (lambda: nn.Sequential(Gated(), Gated()), tokens, {"gate": 1, "up": 1}, []),
    "packed": (
        lambda: nn.Sequential(WithFeedForward(), WithFeedForward()),
        tokens,
        {"ff.net.0.proj": 2},
        [],
    ),
    "halves": (lambda: nn.Sequential(Halved(GatedHalf())), tokens, {"net.0": 2}, []),
    "glu": (lambda: nn.Sequential(Halved(nn.GLU()), Halved(nn.GLU())), tokens, {"net.0": 2}, []),
    "conformer": (lambda: nn.Sequential(Conformer()), tokens, {"up": 2}, ["bn", "deep"]),
    "mixing": (
        MixingNet,
        lambda: torch.randn(40, C, 5, 4),
        {"mlp.up": 1},
        ["mlp.deep.conv"],
    ),
    "gated maps": (
        lambda: nn.Sequential(GatedMaps(), GatedMaps()),
        lambda: torch.randn(40, C, 5, 4),
        {"up": 2},
        ["bn", "deep"],
    ),
    "multiplied": (
        lambda: nn.Sequential(Multiplied(), Multiplied()),
        lambda: torch.randn(40, C, 5, 4),
        {"a": 1, "b": 1},
        [],
    ),
    "timed": (lambda: TimedNet(False), maps, {"conv1": 1}, ["norm2"]),
    "film": (lambda: TimedNet(True), maps, {"conv1": 1}, ["norm2"]),
}


@pytest.mark.parametrize("case", CASES)
def test_redundant_hidden_channels_are_removed_without_loss(case: str) -> None:
    make, draw, producers, between = CASES[case]
    torch.manual_seed(0)
    model, x = make().eval(), draw()
    findings = find(model, x[:2])
    assert all(site.branch is None for site in findings.sites)
    for site in findings.sites:
        traced = findings.traced(site, model)
        hidden = hidden_channels(traced)
        assert isinstance(hidden, HiddenChannels)
        made = {name: producer.times for name, producer in hidden.producers.items()}
        assert (hidden.count, made, [*hidden.between]) == (H, producers, between)
        widths = [c.width for c in Narrow.propose(traced, CandidateSettings())]
        assert 0.375 in widths
    third = Narrow(0.34)  # 16 of 48
    with torch.no_grad():
        wanted = call(copy.deepcopy(model).double(), x.to(torch.float64))
        net = Supernet(model, findings, {site.name: [third] for site in findings.sites})
        net, choices = net.double().eval(), {s.name: third.label for s in findings.sites}
        x = x.to(torch.float64)
        net.choose(choices)
        before = error(call(net, x), wanted)
        assert len(fit_plan(net, choices, [x[:20], x[20:]], FIT)) >= len(choices)
        net.choose(choices)
        assert error(call(net, x), wanted) < 1e-5 < before
        merged = net.merged(torch.float64)
        assert error(call(merged, x), call(net, x)) < 1e-12
        loaded = copy.deepcopy(merged)
        loaded.load_state_dict(merged.state_dict())
        assert error(call(loaded, x), call(net, x)) < 1e-12
    read = [p.shape[1] for p in merged.parameters() if p.ndim > 1]
    assert (read.count(16), read.count(H)) == (len(choices), 0)


class Attended(GatedMaps):
    """NAFNet's: factors for the gated channels are made from their means, by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(H, H, 1))

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.deep(self.up(self.norm(x))).chunk(2, dim=1)
        y = gate * value
        return x + self.down(y * self.sca(y))


class Excited(Attended):
    """Squeeze-and-excitation in the block's own forward, by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Sequential(nn.Linear(H, 4), nn.ReLU()), nn.Linear(4, H)
        del self.sca

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.deep(self.up(self.norm(x))).chunk(2, dim=1)
        y = gate * value
        factor = torch.sigmoid(self.excite(self.squeeze(y.mean((2, 3)))))
        return x + self.down(y * factor[..., None, None])


@pytest.mark.parametrize(
    ("kind", "readers"), [(Attended, ("sca.1",)), (Excited, ("squeeze.0",))], ids=str
)
def test_the_reader_is_fitted_to_channels_with_factors_made_of_those_left(
    kind: type[GatedMaps], readers: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(kind()).eval(), torch.randn(40, C, 5, 4)
    findings = find(model, x[:2])
    (site,) = findings.sites
    hidden = hidden_channels(findings.traced(site, model))
    assert hidden is not None
    assert hidden.readers == readers
    model, x = model.double(), x.double()
    with torch.no_grad():
        expected = model(x)
        net = Supernet(model, findings, {site.name: [Narrow(0.34)]}).double().eval()
        choices = {site.name: Narrow(0.34).label}
        net.choose(choices)
        fit_plan(net, choices, [x[:20], x[20:]], FIT)
        merged = net.merged(torch.float64)
        read: list[Tensor] = []
        own = next(m for m in merged.modules() if isinstance(m, nn.Conv2d) and m.out_channels == C)
        with own.register_forward_pre_hook(lambda module, given: read.append(given[0])):
            left = (merged(x) - expected).norm()
        rows = torch.cat([read[0], torch.ones_like(read[0][:, :1])], 1).movedim(1, -1).flatten(0, 2)
        wanted = (expected - x).movedim(1, -1).flatten(0, 2)
        best = (rows @ torch.linalg.lstsq(rows, wanted).solution - wanted).norm()
    assert rows.shape[1] == 17
    assert 0 < best <= left <= best * (1 + 1e-6)


class Elsewhere(Gated):
    """What the last layer reads is read by another one, too."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(H, C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        hidden = F.silu(self.gate(y)) * self.up(y)
        return x + self.down(hidden) * torch.sigmoid(self.other(hidden))


class Normed(Gated):
    """A norm over the hidden channels, whose statistics would change."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LayerNorm(H)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(self.inner(F.silu(self.gate(y)) * self.up(y)))


class OfSize(Gated):
    """It keeps to the number of hidden channels that it has in its code."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down((F.silu(self.gate(y)) * self.up(y)).reshape(-1, 7, H))


class Ranged(nn.Linear):
    """A layer that keeps the range of its outputs, which are no rows of it."""

    def __init__(self) -> None:
        super().__init__(C, H)
        self.register_buffer("range", torch.tensor([-9.0, 9.0]))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(*self.range.tolist())


class WithRange(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.up = Ranged()


class Gains(nn.Linear):
    """A layer with a buffer for each row, which is not saved."""

    def __init__(self) -> None:
        super().__init__(C, H)
        self.register_buffer("gain", torch.rand(H), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


class WithGains(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.up = Gains()


class Twice(nn.Module):
    """Its gated part runs twice, so one operator reads channels at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.part = nn.LayerNorm(C), FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.part(self.part(self.norm(x)))


class Switched(Gated):
    """A gate that is on or off: its values hold no numbers of channels."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down((self.gate(y) > 0).to(x.dtype) * self.up(y))


KEEPING = [Elsewhere, Normed, OfSize, WithRange, WithGains, Twice, Switched]


@pytest.mark.parametrize("kind", KEEPING)
def test_a_block_whose_hidden_channels_cannot_go_has_no_narrow_form(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(), kind()).eval()
    findings = find(model, tokens()[:2])
    for site in findings.sites:
        traced = findings.traced(site, model)
        assert not [*Narrow.propose(traced, CandidateSettings())]
    traced = findings.traced(findings.sites[0], model)
    if hidden_channels(traced) is None:
        with pytest.raises(UserError, match="site 0 has no inner channels that can become fewer"):
            Narrow(0.5).build(traced)


def test_the_candidate_is_read_from_json_as_any_narrow_one() -> None:
    assert read_candidate(Narrow(0.5).to_json()) == Narrow(0.5)


class Scaled(nn.Linear):
    """A layer that computes its weight at each call."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.rand(1, self.in_features) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias)


class Cast(nn.Linear):
    """A layer with a forward of its own, which reads the weight as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@pytest.mark.parametrize(("layer", "narrows"), [(Scaled, False), (Cast, True)])
def test_channels_are_cut_where_the_reader_s_weight_can_be_set(
    layer: type[nn.Linear], narrows: bool
) -> None:
    block = Gated()
    block.down = layer(H, C)
    findings = find(model := nn.Sequential(block), tokens()[:2])
    (site,) = findings.sites
    found = hidden_channels(findings.traced(site, model))
    assert (found is not None) is narrows
