"""What the clock says of whole plans decides how far a search goes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests import tiny
from tests.sampling import slow
from tests.search.test_choice import latency
from updp import Recipe
from updp.measure import Latency, use_clock
from updp.search import SearchResult, Space, Survey
from updp.stages import search, sites
from updp.supernet import Supernet

RECIPE = tiny.make_recipe(budget={"latency": "1.1x"}, supernet={"epochs": 0})
LIMIT = 1 / 1.1


def each_a_little(
    functions: Mapping[str, object], rounds: int, seconds: float, tick: Callable[[], None]
) -> dict[str, list[float]]:
    """In place of the clock: 40 ms alone; beside others 10, and those 0.5 less than each before."""
    first = 10.0 if len(functions) > 1 else 40.0
    return {name: [first - min(i, 8) / 2] * rounds for i, name in enumerate(functions)}


@dataclass
class Clock:
    """Whole plans, which save `shares` of what their candidates save alone, one each time."""

    root: Path
    recipe: Recipe
    shares: Sequence[float]
    asked: list[list[Mapping[str, str]]] = field(default_factory=list)

    def __call__(
        self, baseline: nn.Module, net: Supernet, plans: Sequence[Mapping[str, str]], *_: Any
    ) -> list[Latency]:
        share = self.shares[min(len(self.asked), len(self.shares) - 1)]
        self.asked.append([*plans])
        space = alone(self.root, self.recipe)
        left = (space.cost(space.genome(plan)).latency / space.ms for plan in plans)
        return [latency(1 / (1 - share * (1 - left))) for left in left]


def alone(root: Path, recipe: Recipe) -> Space:
    survey = Survey.read(root)
    return survey.space(survey.offers(recipe))


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Any:
    """Search with whole plans that save so much."""
    model = tiny.write_model(tmp_path)
    monkeypatch.setattr(sites, "in_place", lambda *_: 1.0)

    def run(
        *shares: float, out: str = "run", recipe: Recipe = RECIPE
    ) -> tuple[Clock, SearchResult]:
        clock = Clock(tmp_path / out, recipe, shares)
        monkeypatch.setattr(search, "time_plans", clock)
        with use_clock(each_a_little):
            tiny.make_run(model, recipe, clock.root, last="search").until("search")
        return clock, SearchResult.read(clock.root)

    return run


@pytest.mark.parametrize("share", [slow(1.3), 1.0, 0.7])
def test_the_best_plans_correct_what_is_predicted(share: float, searched: Any) -> None:
    clock, result = searched(share)
    space = alone(clock.root, RECIPE)
    limit = LIMIT * space.ms
    assert result.plan.measured.median <= limit * (1 + 1e-9)
    assert len(clock.asked) == 2  # once, and all that are known then: some keep to it at once
    first = space.cost(space.genome(clock.asked[0][0])).latency
    off = not 0.96 * limit <= space.ms - share * (space.ms - first) <= limit
    assert off == (share != 1.0)
    fitted = [point for point in result.points if point.fitted is not None]
    wanted = RECIPE.search.refined
    assert len(fitted) >= 1.5 * wanted if off else len(fitted) == wanted
    for point in result.points:
        cost = space.cost(space.genome(point.choices))
        saved = (share if off else 1) * (space.ms - cost.latency)
        assert space.ms - point.latency == pytest.approx(saved)


def test_where_the_best_are_slower_the_next_are_timed(searched: Any) -> None:
    one = RECIPE.updated("search.timed=1")
    clock, result = searched(1.0, 0.7, recipe=one)
    first, second = clock.asked[-2:]
    assert second != first
    space = alone(clock.root, RECIPE)
    assert min(p.measured.median for p in result.points if p.choices in first) > LIMIT * space.ms
    assert result.plan.choices in second
    assert result.plan.measured.median <= LIMIT * space.ms


def test_a_search_that_goes_on_does_not_time_its_best_plans_again(
    searched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    _, whole = searched(0.8)
    with monkeypatch.context() as patched:
        patched.setattr(search, "choose", broken)
        with pytest.raises(KeyboardInterrupt):
            searched(0.8, out="again")
    clock, result = searched(0.8, out="again")
    assert len(clock.asked) == 1
    assert result == whole


def test_without_a_limit_of_latency_the_best_alone_are_timed(searched: Any) -> None:
    clock, _ = searched(0.5, recipe=tiny.make_recipe(supernet={"epochs": 0}))
    assert len(clock.asked) == 1
    assert not (clock.root / search.TimedPlans.FILE).exists()
