from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.fit.test_rows import operators
from updp.algebra import Operator
from updp.fit import Clamp, Fitted, Regression
from updp.recipe import FitSettings

RELU = Clamp(0)


def zeros(like: Operator) -> Operator:
    other = copy.copy(like)
    object.__setattr__(other, "weight", torch.zeros_like(like.weight))
    object.__setattr__(other, "bias", torch.zeros_like(like.bias))
    return other


def solve(
    prior: Operator,
    batches: list[tuple[Tensor, Tensor, Tensor | None]],
    clamp: Clamp = RELU,
    keep: int | None = None,
    unit: int = 1,
    **changes: object,
) -> Fitted:
    regression = Regression(
        prior, clamp, FitSettings().model_copy(update=changes), len(batches), keep=keep, unit=unit
    )
    for number, (_, target, _) in enumerate(batches):
        regression.add_targets(number, target)
    for number, (x, _, beside) in enumerate(batches):
        regression.add_inputs(number, x, beside)
    return regression.solve()


@settings(deadline=None)
@given(operators(), st.booleans(), st.sampled_from([RELU, Clamp(), Clamp(0, 6)]))
def test_an_operator_that_explains_everything_is_found(
    truth: Operator, is_added: bool, clamp: Clamp
) -> None:
    batches = []
    for _ in range(3):
        x = torch.randn(10, truth.in_channels, 11, 10, dtype=torch.float64)
        y = truth(x)
        beside = torch.randn_like(y) if is_added else None
        batches.append((x, y if beside is None else y + beside, beside))
    wanted = batches[-1][1][-2:]  # held out; where all is clamped the prior explains as much
    assume((clamp(wanted) == wanted).double().mean() > 0.05)
    fitted = solve(zeros(truth), batches, clamp, ridge=(1e-9, 1e-2), rounds=0, rows=10_000)
    assert fitted.error < 1e-9
    seen = torch.cat([x for x, _, _ in batches])
    torch.testing.assert_close(fitted.operator(seen), truth(seen), rtol=1e-4, atol=1e-4)
    assert fitted.strength == 1e-9
    assert fitted.strength == 1e-9


def test_targets_below_a_relu_are_free() -> None:
    torch.manual_seed(0)
    truth = Operator(torch.randn(2, 3, 1, 1).double(), torch.randn(2).double())
    x = torch.randn(40, 3, 8, 8).double()
    y = truth(x)
    target = torch.where(y > 0, y, -10 * torch.rand_like(y))  # arbitrary, where it does not count
    plain = solve(zeros(truth), [(x, target, None)], rounds=0)
    better = solve(zeros(truth), [(x, target, None)], rounds=20)
    assert better.error < plain.error / 10
    errors = [(f.operator.weight - truth.weight).norm() for f in (plain, better)]
    assert errors[1] < errors[0] / 3


def test_the_prior_stays_where_its_held_out_error_is_lower() -> None:
    torch.manual_seed(1)
    truth = Operator(torch.randn(2, 30, 1, 1).double(), torch.zeros(2).double())
    x = torch.randn(10, 30, 2, 2).double()  # 32 rows for 31 unknowns
    noisy = truth(x) + torch.randn(10, 2, 2, 2).double()
    fitted = solve(truth, [(x, noisy, None)], Clamp(), ridge=(1e-9,))
    assert fitted.strength is None
    assert fitted.error == fitted.prior_error
    assert torch.equal(fitted.operator.weight, truth.weight)


def test_the_ridge_strength_minimises_the_held_out_error() -> None:
    torch.manual_seed(2)
    truth = Operator(torch.randn(1, 30, 1, 1).double(), torch.zeros(1).double())
    x = torch.randn(20, 30, 2, 2).double()
    noisy = truth(x) + 2 * torch.randn(20, 1, 2, 2).double()
    near = copy.copy(truth)
    object.__setattr__(near, "weight", truth.weight + 0.3 * torch.randn(1, 30, 1, 1).double())
    both = solve(near, [(x, noisy, None)], Clamp(), ridge=(1e-9, 1.0))
    alone = [solve(near, [(x, noisy, None)], Clamp(), ridge=(s,)) for s in (1e-9, 1.0)]
    assert both.error == min(a.error for a in alone)


def test_rows_are_bounded_by_memory_and_by_unknowns() -> None:
    operator = Operator(torch.zeros(4, 4, 3, 3).double(), torch.zeros(4).double())
    few = Regression(operator, RELU, FitSettings(rows=10), batches=5)
    maps = torch.randn(8, 4, 6, 6).double()
    for number in range(5):
        few.add_targets(number, maps)
        few.add_inputs(number, torch.randn(8, 4, 8, 8).double(), None)
    assert few.solve().rows == 10 * 37
    bounded = Regression(operator, RELU, FitSettings(rows=10**6, rows_mb=16), batches=5)
    assert bounded.bytes <= 16 * 2**20


def test_a_row_holds_patches_of_all_groups_a_target_and_what_is_added() -> None:
    operator = Operator(torch.randn(4, 1, 3, 3).double(), torch.zeros(4).double(), groups=4)
    regression = Regression(operator, RELU, FitSettings(rows=10**6, rows_mb=16), batches=2)
    for number in range(2):
        x = torch.randn(4, 4, 107, 107).double()
        regression.add_targets(number, operator(x))
        regression.add_inputs(number, x, None)
    numbers = 4 * (9 + 1) + 4 + 4  # of four bytes each in a run
    assert regression.solve().rows == 16 * 2**20 // (4 * numbers) // 2 * 2


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "kernel", "size"), [(512, 3, 14), (1024, 1, 14)])
def test_wide_operators_fit_in_4_gb(channels: int, kernel: int, size: int) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    operator = Operator(
        torch.zeros(channels, channels, kernel, kernel).double(),
        torch.zeros(channels).double(),
        padding=(kernel // 2,) * 4,
    )
    regression = Regression(operator, RELU, FitSettings(ridge=(1e-4,), rounds=1), batches=8)
    for number in range(8):
        torch.manual_seed(number)
        x = torch.randn(32, channels, size, size)
        regression.add_targets(number, x)
        regression.add_inputs(number, x, None)
    assert regression.solve().rows > 10_000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak - before < 4 * 2**20  # kilobytes


def test_redundant_channels_are_removed_without_a_loss() -> None:
    torch.manual_seed(0)
    truth = Operator(torch.randn(5, 8, 3, 3).double(), torch.randn(5).double())
    few = torch.randn(40, 4, 9, 8).double()
    x = torch.cat([few, few[:, [1, 0, 3, 2]] - 0.5 * few + 1], 1)  # the last four follow
    batches = [(part, truth(part), None) for part in (x[:20], x[20:])]
    fitted = solve(truth, batches, Clamp(), keep=4)
    assert fitted.channels is not None
    assert fitted.operator.weight.shape == (5, 4, 3, 3)
    errors = []
    for weight in (fitted.operator, Operator(truth.weight[:, fitted.channels], truth.bias)):
        made = weight(x[:, fitted.channels])
        errors.append(float((made - truth(x)).norm() / truth(x).norm()))
    assert errors[0] < 1e-3
    assert errors[1] > 0.3  # had the others not taken over


@pytest.mark.parametrize("clamp", [Clamp(), RELU])
def test_channels_go_in_whole_units(clamp: Clamp) -> None:
    torch.manual_seed(0)
    truth = Operator(torch.randn(5, 8, 3, 3).double(), torch.randn(5).double())
    few = torch.randn(40, 4, 9, 8).double()
    x = torch.cat([few[:, :2], few.flip(1) + 0.1, few[:, 2:]], 1)  # units 0, 1 | 2 to 5 | 6, 7
    batches = [(part, truth(part), None) for part in (x[:20], x[20:])]
    fitted = solve(truth, batches, clamp, keep=4, unit=2)
    assert fitted.channels is not None
    units = fitted.channels.view(2, 2)
    assert (units[:, 1] - units[:, 0]).tolist() == [1, 1]
    assert units[:, 0].remainder(2).tolist() == [0, 0]
    made, wanted = fitted.operator(x[:, fitted.channels]), truth(x)
    assert float((clamp(made) - clamp(wanted)).norm() / clamp(wanted).norm()) < 1e-3
