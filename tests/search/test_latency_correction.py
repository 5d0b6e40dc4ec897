import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from tests.search import test_loop as contract
from tests.search.test_choice import latency
from updp.search import latency_factor, prediction_is_off, with_measured_savings
from updp.search.searchers import SearchTask

SPACE = contract.SPACE
share = st.floats(0.05, 0.95)


@given(st.lists(st.tuples(share, share), min_size=1, max_size=6))
def test_the_factor_has_the_least_relative_error(pairs: list[tuple[float, float]]) -> None:
    saved, left = np.array(pairs).T
    best = minimize_scalar(
        lambda f: float((((1 - f * saved - left) / left) ** 2).sum()),
        bounds=(0.5, 2),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert latency_factor(pairs) == pytest.approx(best.x, abs=1e-5)


def test_nothing_saved_has_nothing_to_correct() -> None:
    assert latency_factor([]) == latency_factor([(0.0, 1.1)]) == 1


def predicted(task: SearchTask, plan: tuple[int, ...]) -> float:
    return task.space.cost(plan).latency


def test_a_corrected_space_predicts_what_was_measured() -> None:
    """Plans save 0.8 of the sum; what else is known of them stays as it is."""
    task = contract.make_task("bayes", "latency=0.75")
    plans = [task.random(number) for number in range(5)]
    saved = {plan: 0.8 * (1 - predicted(task, plan) / SPACE.ms) for plan in plans}
    found = with_measured_savings(task, {plan: latency(1 / (1 - s)) for plan, s in saved.items()})
    for plan, s in saved.items():
        assert predicted(found, plan) == pytest.approx(SPACE.ms * (1 - s))
        cost, before = found.space.cost(plan), task.space.cost(plan)
        assert (cost.macs, cost.memory, cost.blocks) == (before.macs, before.memory, before.blocks)
        assert cost.noise == pytest.approx(0.8 * before.noise)
    assert predicted(found, task.space.keep) == SPACE.ms
    # Plans that kept to the budget by the sum do not any more.
    best = found.program.best([1.0] * len(found.program.options), found.limits)
    assert best is not None
    assert predicted(found, best) <= 0.75 * SPACE.ms
    least = task.program.best([1.0] * len(task.program.options), task.limits)
    assert least is not None
    assert predicted(found, least) > 0.75 * SPACE.ms or sum(map(bool, best)) > sum(map(bool, least))


def test_a_budget_stays_within_reach() -> None:
    """However little the plans save; the limit on MACs counts, too."""
    for budget in ("latency=0.45", "latency=0.6,macs=0.9"):
        task = contract.make_task("bayes", budget)
        plan = task.random(0)
        found = with_measured_savings(task, {plan: latency(1.01)})
        assert predicted(found, plan) > predicted(task, plan)
        assert found.program.best([1.0] * len(found.program.options), found.limits) is not None


@pytest.mark.parametrize(("share", "off"), [(0.9, True), (0.97, False), (1.0, False), (1.01, True)])
def test_the_best_plan_is_off_where_it_is_slow_or_fast_beyond_need(share: float, off: bool) -> None:
    task = contract.make_task("bayes", "latency=0.75")
    first, second = task.random(0), task.random(1)
    assert (
        prediction_is_off(task, {first: latency(1 / (0.75 * share)), second: latency(1.0)}) == off
    )
    assert not prediction_is_off(task, {})
