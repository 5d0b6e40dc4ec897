"""A block with fewer inner channels: which are left, and what is fitted to make up for the rest."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.families import error, images, network
from updp.blocks import Findings, find
from updp.candidates import Narrow
from updp.recipe import CandidateSettings, FitSettings
from updp.supernet import Supernet, fit_candidates, fit_plan

FIT = FitSettings(rows=1000)


class PadsItself(nn.Conv2d):
    """Uneven padding in a forward of its own, as TensorFlow's `same`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 2, 0, 2)), self.weight, self.bias, groups=self.groups)


class Wide(nn.Module):
    """A block whose inner channels all follow from the first third of them."""

    def __init__(self, c: int, inner: int, conv: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(c, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 1), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, c, 1), nn.BatchNorm2d(c)
        with torch.no_grad():
            for conv in (self.conv1, self.conv2):  # three times the same, but for a factor
                for copied in (1, 2):
                    third = inner // 3
                    part = slice(copied * third, (copied + 1) * third)
                    conv.weight[part] = conv.weight[:third] * (copied + 1)
                    conv.bias[part] = conv.bias[:third] * (copied + 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + x)


def supernet(model: nn.Module, x: Tensor, *widths: float) -> tuple[Supernet, Findings]:
    findings = find(model.float(), x[:2].float())
    net = Supernet(model, findings, {s.name: [Narrow(w) for w in widths] for s in findings.sites})
    return net.double().eval(), findings


def choices(net: Supernet, place: int = 0) -> dict[str, str]:
    return {name: switch.labels[place] for name, switch in net.switches.items()}


@pytest.mark.parametrize(
    ("alone", "conv"), [(False, nn.Conv2d), (True, nn.Conv2d), (True, PadsItself)]
)
def test_redundant_channels_are_removed_without_loss(alone: bool, conv: type[nn.Conv2d]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Wide(4, 6, conv), Wide(4, 6, conv)).eval()
    x = torch.randn(40, 4, 9, 8).double()
    wanted = copy.deepcopy(model).double()(x)
    net, _ = supernet(model, x, 0.34)  # two of six
    net.choose(choices(net))
    before = error(net(x), wanted)
    batches = [x[:20], x[20:]]
    if alone:
        fit_candidates(net, batches, FIT)
    else:
        figures = fit_plan(net, choices(net), batches, FIT)
        assert [row.operator for row in figures] == 2 * ["conv2", "conv3"]
    net.choose(choices(net))
    assert error(net(x), wanted) < 1e-3 < before / 100
    merged = net.merged(torch.float64)
    assert merged[0].conv1_narrow.weight.shape == (2, 4, 3, 3)
    assert merged[0].conv2_narrow.weight.shape == (2, 2, 1, 1)
    assert error(merged(x), net(x)) < 1e-12


class Grouped(Wide):
    """A block like `Wide`, with GroupNorms inside, whose channels adjoin in copies."""

    def __init__(self, c: int, inner: int) -> None:
        super().__init__(c, inner)
        self.bn1, self.bn2 = nn.GroupNorm(6, inner), nn.GroupNorm(3, inner)


def test_whole_groups_are_removed_without_loss_where_they_are_redundant() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Grouped(4, 12)).eval(), torch.randn(40, 4, 9, 8).double()
    wanted = copy.deepcopy(model).double()(x)
    net, _ = supernet(model, x, 0.34)  # four of twelve: two groups of two, one of four
    net.choose(choices(net))
    before = error(net(x), wanted)
    fit_plan(net, choices(net), [x[:20], x[20:]], FIT)
    net.choose(choices(net))
    assert error(net(x), wanted) < 1e-3 < before / 100
    merged = net.merged(torch.float64)
    norms = [m for m in merged.modules() if isinstance(m, nn.GroupNorm) and m.num_channels < 12]
    assert sorted((m.num_groups, m.num_channels) for m in norms) == [(1, 4), (2, 4)]
    assert error(merged(x), net(x)) < 1e-12


class Cardinal(nn.Module):
    """A block like ResNeXt's, whose three groups are the same but for a factor."""

    def __init__(self, c: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(c, inner, 1), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=3)
        self.conv3, size = nn.Conv2d(inner, c, 1), inner // 3
        with torch.no_grad():
            for copied in (1, 2):
                part = slice(copied * size, (copied + 1) * size)
                for conv, factor in ((self.conv1, copied + 1), (self.conv2, 1)):
                    conv.weight[part] = conv.weight[:size] * factor
                self.conv1.bias[part] = self.conv1.bias[:size] * (copied + 1)
                self.conv2.bias[part] = self.conv2.bias[:size] * (copied + 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv1(x)))
        return torch.relu(self.conv3(torch.relu(self.conv2(y))) + x)


def test_whole_groups_of_a_convolution_are_removed_without_loss() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Cardinal(4, 12)).eval(), torch.randn(40, 4, 9, 8).double()
    wanted = copy.deepcopy(model).double()(x)
    net, _ = supernet(model, x, 0.34)  # four of twelve: one group
    net.choose(choices(net))
    before = error(net(x), wanted)
    fit_plan(net, choices(net), [x[:20], x[20:]], FIT)
    net.choose(choices(net))
    assert error(net(x), wanted) < 4e-4 < before / 100
    merged = net.merged(torch.float64)
    conv = merged[0].conv2_narrow
    assert (conv.groups, conv.in_channels, conv.weight.shape) == (1, 4, (4, 4, 3, 3))
    assert error(merged(x), net(x)) < 1e-12


def test_a_second_fit_starts_from_the_block_again() -> None:
    """A form that was fitted is fitted to other images as if it had not been."""
    torch.manual_seed(0)
    model, x, y = nn.Sequential(Wide(4, 6)).eval(), *torch.randn(2, 40, 4, 9, 8).double()
    results = []
    for first in (None, y):
        net, _ = supernet(copy.deepcopy(model), x, 0.5)
        if first is not None:
            fit_candidates(net, [first], FIT)
        fit_plan(net, choices(net), [x], FIT)
        results.append(net(x))
    assert error(results[1], results[0]) < 1e-12


def test_narrow_weights_are_saved_and_loaded() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Wide(4, 6), Wide(4, 6)).eval(), torch.randn(20, 4, 9, 8).double()
    net, _ = supernet(copy.deepcopy(model), x, 0.5, 0.34)
    fit_candidates(net, [x], FIT)
    other, _ = supernet(copy.deepcopy(model), x, 0.5, 0.34)
    other.load_weights(net.weights())
    for place in (0, 1):
        for each in (net, other):
            each.choose(choices(net, place))
        assert torch.equal(other(x), net(x))


def test_a_fit_brings_a_narrow_transformer_nearer() -> None:
    model, x = network("vit"), images(30).double()
    wanted = copy.deepcopy(model).double()(x)
    findings = find(model, x[:2].float())
    chains = [s for s in findings.sites if s.branch is not None and Narrow(0.5).fits(s)]
    wide = {site.name: [Narrow(0.5)] for site in chains}
    assert wide
    assert all(name.endswith("mlp") for name in wide)
    net = Supernet(model, findings, wide).double().eval()
    net.choose(choices(net))
    before = error(net(x), wanted)
    fit_plan(net, choices(net), [x], FIT)
    assert error(net(x), wanted) < before


class FeedForward(nn.Module):
    """What reads the inner channels has no activation behind it, so its fit needs sums only."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 32), nn.Linear(32, 4)
        self.norm = nn.LayerNorm(32) if gated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.norm(F.gelu(self.fc1(x))))


@pytest.mark.parametrize("gated", [False, True])
def test_widths_fitted_together_are_those_fitted_alone(gated: bool) -> None:
    x = torch.randn(40, 9, 4, generator=torch.Generator().manual_seed(0)).double()

    def fitted(*widths: float) -> Supernet:
        torch.manual_seed(1)
        net, _ = supernet(nn.Sequential(FeedForward(gated), FeedForward(gated)).eval(), x, *widths)
        fit_candidates(net, [x[:20], x[20:]], FIT)
        return net

    together = fitted(0.75, 0.5, 0.25)
    for place, width in enumerate((0.75, 0.5, 0.25)):
        alone = fitted(width)
        for net, number in ((together, place), (alone, 0)):
            net.choose(choices(net, number))
        assert torch.equal(together(x), alone(x))


def test_no_two_widths_leave_the_same_channels_and_none_all() -> None:
    model = network("bottleneck")  # three inner channels
    found = find(model, images())
    site = found.sites[0]
    asked = CandidateSettings(widths=(0.2, 0.3, 0.6, 0.7, 0.9))
    proposed = list(Narrow.propose(found.traced(site, model), asked))
    assert [c.label for c in proposed] == ["narrow 70%", "narrow 30%"]
    assert not Narrow(0.9).fits(site)


class Adding(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def test_a_width_that_is_rounded_down_is_offered_where_all_are_not_a_multiple() -> None:
    torch.manual_seed(0)
    branch = nn.Sequential(nn.Conv2d(6, 20, 1), nn.ReLU(), nn.Conv2d(20, 6, 1))
    model = nn.Sequential(Adding(branch)).eval()
    settings = CandidateSettings(widths=(0.875, 0.75, 0.375))
    found = find(model, torch.randn(2, 6, 9, 7))
    proposed = list(Narrow.propose(found.traced(found.sites[0], model), settings))
    assert [c.label for c in proposed] == ["narrow 75%", "narrow 37.5%"]  # 16 of 20, and 8


def test_training_a_narrow_form_leaves_the_block_alone() -> None:
    """The block's own weights do not change with it."""
    torch.manual_seed(0)
    model, x = nn.Sequential(Wide(4, 6)).eval(), torch.randn(20, 4, 9, 8).double()
    net, _ = supernet(model, x, 0.5)
    before = copy.deepcopy(net.baseline().state_dict())
    net.choose(choices(net))
    net(x).square().sum().backward()
    (form,) = net.switches["0"].forms
    for name, parameter in form.named_parameters():
        assert parameter.grad is not None, name
        parameter.data -= 0.1 * parameter.grad
    for name, tensor in net.baseline().state_dict().items():
        assert torch.equal(tensor, before[name])


class Excite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Global(nn.Module):
    """Response normalisation over channels, as in ConvNeXt V2, channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(dim=(1, 2), keepdim=True)
        share = size / (size.mean(-1, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.bias, self.weight, x * share)


class Gated(nn.Module):
    """With a gate that mixes the inner channels."""

    def __init__(self, gate: str) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(4, 12, 1), nn.GELU()
        self.gate = Excite(12) if gate == "excite" else nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.gate(self.act(self.first(x))))


class Branch(nn.Module):
    """Squeeze-and-excitation in the forward that has the operators."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Conv2d(4, 12, 1), nn.GELU(), nn.Conv2d(12, 4, 1)
        self.se = nn.ModuleDict({"reduce": nn.Conv2d(12, 3, 1), "expand": nn.Conv2d(3, 12, 1)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        gate = self.se.reduce(F.adaptive_avg_pool2d(y, 1))
        return self.second(torch.sigmoid(self.se.expand(F.silu(gate))) * y)


class Inline(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = Branch()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Gain(nn.Module):
    """Response normalisation by parameters of the block, in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 12, 1), nn.Conv2d(12, 4, 1)
        self.gain = nn.Parameter(torch.rand(12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.first(x))
        size = y.norm(dim=(2, 3), keepdim=True)
        return x + self.second(y + self.gain * y * size / size.mean(1, keepdim=True))


class Responding(nn.Module):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.first, self.act, self.gate = nn.Linear(4, 12), nn.GELU(), gate
        self.second = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.gate(self.act(self.first(x.permute(0, 2, 3, 1)))))
        return x + y.permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gated("excite"),
        Inline,
        lambda: Responding(Global(12)),
        lambda: Responding(nn.LayerNorm(12)),
    ],
)
def test_a_gate_works_on_fewer_channels_and_its_reader_is_fitted_again(
    make: Callable[[], nn.Module],
) -> None:
    """What is fitted last is what reads the gate as it is then: no other weights are better."""
    torch.manual_seed(0)
    model, x = nn.Sequential(make()).eval(), torch.randn(60, 4, 9, 8).double()
    wanted = copy.deepcopy(model).double()(x)
    net, _ = supernet(model, x, 0.5)
    figures = fit_plan(net, choices(net), [x], FIT)
    assert [row.operator for row in figures] == 2 * ["second"]
    net.choose(choices(net))
    best = error(net(x), wanted)
    assert best < 0.2
    merged = net.merged(torch.float64)
    assert error(merged(x), net(x)) < 1e-12
    weight = merged[0].second_narrow.weight
    assert weight.shape[1] == 6
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        step = torch.randn(weight.shape, generator=generator).double()
        with torch.no_grad():
            weight += 1e-2 * step * weight.norm() / step.norm()
            assert error(merged(x), wanted) > best * (1 - 1e-6)
            weight -= 1e-2 * step * weight.norm() / step.norm()


class Shared(nn.Module):
    """One activation, with a weight per channel, inside and behind the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.act = nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.second(self.act(self.first(x))))


class Swish(nn.Module):
    """A convolution with its norm and an activation that is written out."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x * torch.sigmoid(x)


class Flagged(nn.Module):
    def forward(self, x: Tensor, positive: bool) -> Tensor:
        return torch.relu(x) if positive else x


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first = kind, Swish(4, 12) if kind == "swish" else nn.Conv2d(4, 12, 1)
        self.act, self.second = Flagged(), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return x + self.second(self.act(y, True) if self.kind == "flag" else y)


def proposed(model: nn.Module, x: Tensor) -> list[Narrow]:
    found = find(model, x)
    return list(Narrow.propose(found.traced(found.sites[0], model), CandidateSettings()))


@pytest.mark.parametrize("make", [lambda: Odd("swish"), lambda: Odd("flag"), Around])
def test_functions_in_a_forward_stay_in_the_narrow_block(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(make()).eval(), torch.randn(40, 4, 9, 8).double()
    assert len(proposed(model, x[:2].float())) == 6
    wanted = copy.deepcopy(model).double()(x)
    net, _ = supernet(model, x, 0.5)
    net.choose(choices(net))
    before = error(net(x), wanted)
    fit_plan(net, choices(net), [x], FIT)
    assert error(net(x), wanted) < before
    assert error(net.merged(torch.float64)(x), net(x)) < 1e-12


@pytest.mark.parametrize("make", [Gain, Shared])
def test_a_block_that_cannot_be_cut_has_no_narrow_candidate(make: Callable[[], nn.Module]) -> None:
    """A gate on parameters of the block's own; a module that is called elsewhere, too."""
    assert proposed(nn.Sequential(make()).eval(), torch.randn(2, 4, 9, 8)) == []


class Failing(nn.ReLU):
    """It fails once it is told to."""

    told = False

    def forward(self, x: Tensor) -> Tensor:
        if self.told:
            raise RuntimeError("it was told to")
        return super().forward(x)


def test_a_copy_that_fails_with_all_channels_is_not_called_bound_to_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "updp")
    model = nn.Sequential(Odd("")).eval()
    model[0].second = nn.Sequential(Failing(), model[0].second)
    found = find(model, torch.randn(2, 4, 9, 8))
    model[0].second[0].told = True
    traced = found.traced(found.sites[0], model)
    assert list(Narrow.propose(traced, CandidateSettings())) == []
    assert "a copy of it fails with all channels: RuntimeError: it was told to" in caplog.text


class Remembering(nn.BatchNorm2d):
    """A norm with something that is not saved."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("seen", torch.rand(channels), persistent=False)


def test_a_block_with_unsaved_buffers_has_no_narrow_candidate() -> None:
    model = nn.Sequential(Wide(4, 6)).eval()
    x = torch.randn(2, 4, 9, 8)
    assert proposed(model, x)
    model[0].bn1 = Remembering(6).eval()
    assert proposed(model, x) == []


def test_frozen_weights_stay_frozen() -> None:
    model = nn.Sequential(Wide(4, 6)).eval()
    model[0].conv1.requires_grad_(False)
    net, _ = supernet(model, torch.randn(4, 4, 9, 8), 0.5)
    (form,) = net.switches["0"].forms
    learnt = {name for name, p in form.named_parameters() if p.requires_grad}
    frozen = {name for name, p in form.named_parameters() if not p.requires_grad}
    assert frozen == {"copies.0.weight", "copies.0.bias"}
    assert learnt


def test_an_instance_norm_without_weights_gets_fewer_channels() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Wide(4, 6)).eval(), torch.randn(40, 4, 9, 8).double()
    model[0].bn1, model[0].bn2 = nn.InstanceNorm2d(6), nn.InstanceNorm2d(6)
    wanted = copy.deepcopy(model).double()(x)
    net, _ = supernet(model, x, 0.34)  # two of six
    fit_plan(net, choices(net), [x[:20], x[20:]], FIT)
    net.choose(choices(net))
    assert error(net(x), wanted) < 1e-3
    merged = net.merged(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of another number of channels than the norm's own
        assert error(merged(x), net(x)) < 1e-12
