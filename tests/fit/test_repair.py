"""What is kept behind a pruned block is fitted to the baseline again."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.families import error
from tests.fit.test_fitting import FIT, Block, network, supernet
from updp.blocks import find
from updp.fit import FitTask, operator_repair, site_repairs
from updp.recipe import FitSettings
from updp.supernet import KEEP, fit_plan

EXACT = FIT.model_copy(update={"ridge": (1e-12,)})


def repairs_of(model: nn.Module, x: Tensor, fit: FitSettings = FIT) -> list[FitTask]:
    findings = find(model, x[:2])
    (site,) = findings.sites
    return site_repairs(findings.traced(site, model), fit, 1)


@pytest.mark.parametrize("biased", [False, True])
def test_repair_makes_up_for_a_pruned_block(biased: bool) -> None:
    model, x = network(0.0, 0.0, 0.0)
    if biased:
        for block in model:
            block.conv2.bias = nn.Parameter(torch.randn(4).double())
    wanted = model(x)
    errors = {}
    for repair in (False, True):
        net = supernet(copy.deepcopy(model), x)
        name, switch = next(iter(net.switches.items()))
        figures = fit_plan(
            net,
            {name: switch.labels[0]},
            [x[:10], x[10:]],
            FIT.model_copy(update={"repair": repair}),
        )
        errors[repair] = error(net(x), wanted)
        merged = net.merged(torch.float64)
        assert error(merged(x), net(x)) < 1e-12
        changed = {n for n, t in model.state_dict().items() if not n.startswith("0")}
        assert changed <= merged.state_dict().keys()  # kept blocks are the user's own
        kept = [row.operator for row in figures if row.candidate == KEEP]
        assert kept == (2 * ["conv1", "conv2"] if repair else [])
    assert errors[True] < errors[False]


def test_repair_of_an_unchanged_prefix_changes_nothing() -> None:
    model, x = network(0.0)
    before = copy.deepcopy(model.state_dict())
    wanted = model(x)
    for fitting in repairs_of(model, x):
        fitting.add_target(0, x)
        fitting.add_input(0, x)
        fitting.finish()
    assert error(model(x), wanted) < 1e-9
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-5, atol=1e-6)


def test_each_operator_of_a_branch_regains_its_output() -> None:
    """All channels mixed: the first operator unmixes them, and so the branch is what it was."""
    model, x = network(0.0)
    block = model[0]
    first, second = repairs_of(model, x)
    for fitting in (first, second):
        fitting.add_target(0, x)
    wanted, branch = block.conv1(x), block(x)
    mixed = torch.einsum("oi,nihw->nohw", torch.randn(4, 4).double(), x)
    without_skip = block.bn2(block.conv2(block.act(wanted)))
    first.add_input(0, mixed)
    first.finish()
    assert first.operator == "conv1"
    assert error(block.act(block.conv1(mixed)), block.act(wanted)) < 1e-3
    assert error(block.bn2(block.conv2(block.act(block.conv1(mixed)))), without_skip) < 1e-3
    before = error(block(mixed), branch)
    second.add_input(0, mixed)
    second.finish()
    assert error(block(mixed), branch) < before  # which the mixed skip had spoilt


class Strided(nn.Module):
    """A block with a convolution in its skip, which has no bias but that of its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, 2, 1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.down = nn.Sequential(nn.Conv2d(4, 6, 1, 2, bias=False), nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.down(x) + self.conv2(torch.relu(self.conv1(x))))


def test_operators_of_the_skip_are_repaired_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Strided()).double().eval()
    x = torch.randn(30, 4, 9, 7).double()
    found = repairs_of(model, x)
    assert [fitting.operator for fitting in found] == ["down.0", "conv1", "conv2"]
    wanted = model[0].down(x)
    mixed = torch.einsum("oi,nihw->nohw", torch.randn(4, 4).double(), x)
    found[0].add_target(0, x)
    found[0].add_input(0, mixed)
    found[0].finish()
    assert error(model[0].down(mixed), wanted) < 1e-3


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (lambda b: nn.Conv2d(6, 5, 3, 2, 1, bias=b), (20, 6, 9, 8)),
        (lambda b: nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=b), (20, 6, 5, 5)),
        (lambda b: nn.Linear(6, 5, bias=b), (90, 6)),
        (lambda b: nn.Linear(6, 5, bias=b), (20, 7, 6)),
        (lambda b: nn.Linear(6, 5, bias=b), (20, 4, 3, 6)),
    ],
)
def test_an_operator_outside_of_sites_regains_its_output(
    module, shape: tuple[int, ...], biased: bool
) -> None:
    torch.manual_seed(0)
    layer = module(biased).double()
    x = torch.randn(shape).double()
    axis = 1 if isinstance(layer, nn.Conv2d) else -1
    changed = x * torch.rand(6).double().add(0.5).view(
        [6 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    )
    wanted, bias = layer(x), copy.deepcopy(layer.bias)
    fitting = operator_repair("layer", layer, x[:2], FIT, 1)
    assert fitting is not None
    fitting.add_target(0, x)
    fitting.add_input(0, changed)
    fitting.finish()
    assert error(layer(changed), wanted) < 1e-6
    assert (layer.bias is None) == (bias is None)


def test_operators_too_wide_for_memory_are_not_repaired() -> None:
    settings = FIT.model_copy(update={"rows_mb": 16})
    x = torch.randn(2, 800)
    assert operator_repair("fc", nn.Linear(800, 2), x, settings, 1) is None
    assert operator_repair("fc", nn.Linear(600, 2), x[:, :600], settings, 1) is not None


class Around(nn.Module):
    """Blocks between other operators: one runs twice, two have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.between = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.first, self.second = Block(4, 0.0), Block(4, 0.0)
        self.twice = nn.Conv2d(4, 4, 1)
        self.one, self.other, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.unused = nn.Linear(4, 5)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.between(self.first(self.stem(x))))
        h = self.twice(self.twice(h)).mean((2, 3))
        return self.head(self.other(torch.tanh(self.one(h))))


def test_operators_outside_of_sites_are_repaired_in_order() -> None:
    torch.manual_seed(0)
    model, x = Around().double().eval(), torch.randn(60, 3, 9, 7).double()
    wanted = model(x)
    errors = []
    for repair in (False, True):
        net = supernet(copy.deepcopy(model), x)
        choices = {"first": net.switches["first"].labels[0]}
        figures = fit_plan(net, choices, [x], FIT.model_copy(update={"repair": repair}))
        errors.append(error(net(x), wanted))
    assert errors[1] < errors[0]
    places = [(row.site, row.operator) for row in figures]
    assert places == [
        ("first", "conv2"),
        ("between", "between"),
        ("second", "conv1"),
        ("second", "conv2"),
        ("head", "head"),
    ]


def test_the_targets_of_all_fits_share_the_memory() -> None:
    model, x = network(0.0, 0.0, 0.0)
    rows = []
    for megabytes in (1024, 0.1):
        net = supernet(copy.deepcopy(model), x)
        name, switch = next(iter(net.switches.items()))
        settings = FIT.model_copy(update={"rows_mb": megabytes, "judged": 0.0})
        figures = fit_plan(net, {name: switch.labels[0]}, [x[:15], x[15:]], settings)
        rows.append(sum(row.rows for row in figures))
    assert rows[0] == 5 * 30 * 9 * 7
    assert 0.9 * 0.1 * 2**20 < rows[1] * 4 * 8 <= 0.1 * 2**20  # channels, bytes


class Attention(nn.Module):
    """Attention in one module of its own, with a factor per channel behind it, or without."""

    def __init__(self, channels: int, scaled: bool) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.gamma = nn.Parameter(torch.rand(channels) + 0.5 if scaled else torch.ones(()))

    def heads(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return weights @ v

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.heads(x)) * self.gamma


class Attending(nn.Module):
    def __init__(self, channels: int, scaled: bool) -> None:
        super().__init__()
        self.act, self.attn = nn.Tanh(), Attention(channels, scaled)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.act(x))


@settings(max_examples=25)
@given(st.integers(2, 6), st.integers(2, 5), st.booleans(), st.integers(0, 99))
def test_attention_that_is_kept_makes_up_for_its_skip(
    channels: int, tokens: int, scaled: bool, seed: int
) -> None:
    """Its last layer is that of a solver of least squares, on what the skip has lost."""
    torch.manual_seed(seed)
    model = nn.Sequential(Attending(channels, scaled)).double().eval()
    block = model[0]
    x = torch.randn(200, tokens, channels).double()
    mixed = torch.einsum("oi,nti->nto", torch.randn(channels, channels).double(), x)
    inner, last = repairs_of(model, x, EXACT)
    assert [inner.operator, last.operator] == ["attn.qkv", "attn.proj"]
    for fitting in (inner, last):
        fitting.add_target(0, x)
    wanted, inside = block(x), block.attn.qkv(block.act(x))
    inner.add_input(0, mixed)
    assume(inner.finish().strength)  # else the held-out rows prefer what there was
    reference = solved(block.act(mixed), inside)
    assert error(block.attn.qkv(block.act(mixed)), reference) < 1e-3
    last.add_input(0, mixed)
    assume(last.finish().strength)
    reference = solved(block.attn.heads(block.act(mixed)), wanted - mixed)
    assert error(block(mixed) - mixed, reference) < 1e-3


def solved(x: Tensor, wanted: Tensor) -> Tensor:
    """The nearest to the wanted tensor (N, T, O) that a linear layer with a bias makes of `x`."""
    rows = torch.cat([x, torch.ones_like(x[..., :1])], -1).flatten(0, 1)
    solution = torch.linalg.lstsq(rows, wanted.flatten(0, 1), driver="gelsd").solution
    return (rows @ solution).reshape(wanted.shape)


class Windows(nn.Module):
    """A layer on halves of the tokens, as in windows, and one in the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner, self.last = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        halves = x.reshape(-1, 3, 4)
        y = self.inner(halves).softmax(1).reshape(x.shape)
        return self.down(x) + self.last(y * y.mean(1, keepdim=True))


def test_layers_in_windows_and_in_the_skip_are_repaired() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Windows()).double().eval(), torch.randn(60, 6, 4).double()
    found = repairs_of(model, x, EXACT)
    assert [task.operator for task in found] == ["down", "inner", "last"]
    block, mixed = model[0], torch.einsum("oi,nti->nto", torch.randn(4, 4).double(), x)
    halves, others = (values.reshape(120, 3, 4) for values in (x, mixed))
    for task, layer, x_before, read in (
        (found[0], block.down, x, mixed),
        (found[1], block.inner, halves, others),
    ):
        wanted = layer(x_before)
        task.add_target(0, x)
        task.add_input(0, mixed)
        assert task.finish().strength
        assert error(layer(read), solved(read, wanted)) < 1e-3


class Bare(nn.Module):
    """A branch that is no chain, and whose last layer is no end of it: its output is sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return x + self.last(y * y.mean(1, keepdim=True)).sort(1).values


def test_layers_that_share_their_weight_are_left_as_they_are() -> None:
    model, x = nn.Sequential(Bare()).double().eval(), torch.randn(20, 5, 4).double()
    model[0].last.weight = model[0].first.weight
    assert repairs_of(model, x) == []


def test_a_layer_that_ends_no_branch_is_fitted_to_its_own_output() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Bare()).double().eval(), torch.randn(40, 5, 4).double()
    first, last = repairs_of(model, x, EXACT)
    assert [first.operator, last.operator] == ["first", "last"]
    last.add_target(0, x)
    y = model[0].first(x)
    wanted = model[0].last(y * y.mean(1, keepdim=True))
    mixed = torch.einsum("oi,nti->nto", torch.randn(4, 4).double(), x)
    last.add_input(0, mixed)
    last.finish()
    y = model[0].first(mixed)
    read = y * y.mean(1, keepdim=True)
    assert error(model[0].last(read), solved(read, wanted)) < 1e-3
