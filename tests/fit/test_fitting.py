"""Fit and collapse, for every kind of candidate on every family of blocks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.candidates.supernets import Case, case
from tests.candidates.test_contract import CASES
from tests.families import error
from tests.sampling import every_other
from updp.blocks import find
from updp.candidates import inherit_cuts, proposals
from updp.fit.gathered import GatheredRows
from updp.recipe import CandidateSettings, FitSettings
from updp.supernet import Supernet, fit_candidates, fit_plan

FIT = FitSettings(ridge=(1e-8, 1e-4), rows=10_000, judged=0)


@pytest.fixture(scope="module", params=every_other(CASES), ids="-".join)
def made(request: pytest.FixtureRequest) -> Case:
    return case(*request.param)


def test_collapsing_changes_nothing_and_merges_to_the_same(made: Case) -> None:
    net, _, x = made.double
    net = copy.deepcopy(net)
    for choices in _choices(made):
        net.choose(choices)
        before = net(x)
        for name, label in choices.items():
            net.switches[name].form(label).set_shape("collapsed")
        collapsed, merged = net(x), net.merged(torch.float64)(x)
        assert error(collapsed, before) < 1e-12
        assert error(merged, before) < 1e-12
        for name, label in choices.items():
            net.switches[name].form(label).set_shape("factored")
        assert torch.equal(net(x), before)


def test_a_fit_is_no_worse_than_what_it_starts_from(made: Case) -> None:
    """On the rows themselves: with nothing held out, one site alone, no clamp followed."""
    net, base, x = made.double
    net = copy.deepcopy(net)
    wanted = base(x)
    for choices in _choices(made):
        net.choose(choices)
        before = error(net(x), wanted)
        figures = fit_plan(net, choices, [x], FIT.model_copy(update={"repair": False}))
        assert net.merged(torch.float64) is not None
        for row in figures:
            assert row.site in choices
            assert row.error <= row.prior_error
        merged = net.merged(torch.float64)(x)
        assert error(merged, net(x)) < 1e-12
        assert torch.isfinite(merged).all()
        if figures and all(row.error < 1e-6 for row in figures):
            assert error(merged, wanted) <= max(before, 1e-4)


def test_weights_of_fitted_forms_survive_saving_and_loading(made: Case) -> None:
    net, _, x = made.double
    net = copy.deepcopy(net)
    plain = {name: t.clone() for name, t in net.weights().items()}
    other = copy.deepcopy(net)
    fit_candidates(net, [x], FIT)
    other.load_weights(net.weights(), net.shapes())
    for choices in _choices(made):
        net.choose(choices)
        other.choose(choices)
        assert torch.equal(net(x), other(x))
    other.load_weights(plain, {})
    assert other.weights().keys() == plain.keys()


def test_reserved_weights_are_used_only_once_collapsed(made: Case) -> None:
    net, _, x = made.double
    net = copy.deepcopy(net)
    choices = _choices(made)[0]
    net.choose(choices)
    forms = [net.switches[name].form(label) for name, label in choices.items()]
    before = net(x)
    for form in forms:
        form.set_shape("reserved")
    held = {id(p) for p in net.parameters()}
    assert torch.equal(net(x), before)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.1)
    changed = net(x)
    for form in forms:
        form.set_shape("reserved")
        form.set_shape("collapsed")
    assert error(net(x), changed) < 1e-12
    assert {id(p) for p in net.parameters()} == held


def _choices(made: Case) -> list[dict[str, str]]:
    """For each rank the first candidates, in every site that has one."""
    longest = max(len(options) for options in made.candidates.values())
    return [
        {name: found[min(i, len(found) - 1)].label for name, found in made.candidates.items()}
        for i in range(min(longest, 2))
    ]


class Block(nn.Module):
    """Whose ReLU does nothing while `shift` is large: the branch is then linear."""

    def __init__(self, channels: int, shift: float, kernel: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        nn.init.constant_(self.conv1.bias, shift)
        nn.init.normal_(self.bn2.bias)
        nn.init.uniform_(self.bn2.weight, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(self.act(self.conv1(x)))))


def network(*shifts: float, kernel: int = 3) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(*(Block(4, s, kernel) for s in shifts)).double().eval()
    return net, torch.randn(30, 4, 9, 7).double()


def supernet(model: nn.Module, x: Tensor) -> Supernet:
    findings = find(model, x[:2])
    sites = {s.name: list(inherit_cuts(s, end_activation=False))[:1] for s in findings.sites}
    return Supernet(model, findings, sites).eval()


def test_a_branch_that_is_linear_is_fitted_exactly_on_a_changed_prefix() -> None:
    """The second block's fit sees what the first one's left over, not the baseline's values."""
    model, x = network(0.0, 50.0, kernel=1)
    wanted = model(x)
    net = supernet(copy.deepcopy(model), x)
    choices = {name: switch.labels[0] for name, switch in net.switches.items()}
    second = {name: label for name, label in choices.items() if name.startswith("1")}
    fit_plan(net, second, [x[:15], x[15:]], FIT)
    assert error(net(x), wanted) < 1e-4
    alone = supernet(copy.deepcopy(model), x)
    fit_candidates(alone, [x], FIT)
    fit_plan(net, choices, [x], FIT)
    alone.choose(choices)
    assert error(net(x), wanted) < error(alone(x), wanted)


def test_little_memory_means_more_passes_and_the_same_fit() -> None:
    model, x = network(0.0, 0.0, 0.0)
    passes, weights = [], []
    for megabytes in (16, 1024):
        settings = FIT.model_copy(update={"rows": 50_000, "rows_mb": megabytes})
        net = supernet(copy.deepcopy(model), x)
        calls: list[int] = []
        net.model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        fit_candidates(net, [x[:15], x[15:]], settings)
        passes.append(len(calls))
        weights.append(net.weights())
    assert passes == [6, 2]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name])


def test_rows_of_all_candidates_stay_within_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several candidates of one site, too; each is fitted as if it had all of the memory."""
    held: list[GatheredRows] = []
    clear = GatheredRows.clear

    def noted(rows: GatheredRows) -> None:
        held.extend([rows] if rows not in held else [])
        clear(rows)

    monkeypatch.setattr(GatheredRows, "clear", noted)
    torch.manual_seed(0)
    model, x = nn.Sequential(Block(6, 0.0)).eval(), torch.randn(58, 6, 32, 32)
    findings = find(model, x[:2])
    (site,) = findings.sites
    candidates = [*inherit_cuts(site, end_activation=False), *inherit_cuts(site, linearise=True)]
    labels = {c.label: c for c in candidates}
    assert len(labels) > 1
    sizes, ticks, weights = list[int](), list[str](), []
    for megabytes in (16, 1024):
        held.clear()
        settings = FIT.model_copy(update={"rows": 10_000, "rows_mb": megabytes})
        net = Supernet(copy.deepcopy(model), findings, {site.name: tuple(labels.values())}).eval()
        most = [0]

        def measure(*_: object, most: list[int] = most) -> None:
            kept = (v for rows in held for v in (rows._targets, rows._inputs, rows._beside))
            most[0] = max(most[0], sum(t.nbytes for values in kept for t in values.values()))

        net.model.register_forward_hook(measure)
        net.calibrate(x)
        fit_candidates(net, [x[:29], x[29:]], settings, ticks.append)
        sizes.append(most[0])
        weights.append(net.weights())
    assert sizes[0] <= 16 * 2**20 < sizes[1]
    assert ticks == [site.name] * 6
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name])


class Sometimes(nn.Module):
    """Runs its last layer only where its block is more than a line per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = Plain(4, 0.0), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y if error(scaled(y), scaled(x)) < 1e-6 else self.last(y)


def scaled(x: Tensor) -> Tensor:
    """With mean 0 and variance 1 in each channel."""
    return (x - x.mean((0, 2, 3), True)) / x.std((0, 2, 3), keepdim=True)


class Plain(Block):
    """Without an activation at its end."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.act(self.conv1(x))))


def test_what_a_pruned_network_calls_no_more_is_not_fitted() -> None:
    torch.manual_seed(0)
    model, x = Sometimes().double().eval(), torch.randn(30, 4, 9, 7).double()
    findings = find(model, x[:2])
    (site,) = findings.sites
    traced = findings.traced(site, model)
    kept = CandidateSettings(drop="always")
    drop = next(c for c in proposals(traced, kept) if c.label == "drop")
    net = Supernet(model, findings, {site.name: [drop]}).eval()
    rows = fit_plan(net, {site.name: "drop"}, [x[:15], x[15:]], FIT)
    assert "last" not in [row.site for row in rows]
    assert error(scaled(net(x)), scaled(x)) < 1e-6
