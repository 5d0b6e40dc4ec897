import importlib
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import optuna
import pytest

from tests import tiny
from updp import Recipe
from updp.engine.files import Figures
from updp.engine.progress import Silent
from updp.recipe import Budget
from updp.search import Cost, Costs, Evaluated, search

NAMES = "abcdefgh"
DAMAGE = dict(zip(NAMES, (0.9, 0.2, 0.75, 0.4, 0.1, 0.6, 0.35, 0.5), strict=True))
# Dear sites do more damage, but for `c`, which is bad alone and harmless beside `a`.
COSTS = Costs(
    20.0, 1000, {n: Cost(f"form of {n}", 1 + i / 4, 50 + 7 * i) for i, n in enumerate(NAMES)}
)


class Stopped(Exception):
    pass


class Score:
    """Additive but for one pair; remembers what it was asked, and may stop."""

    def __init__(self, stop: int | None = None) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.stop = stop

    def __call__(self, choices: Mapping[str, str]) -> tuple[float, float]:
        assert all(label == f"form of {name}" for name, label in choices.items())
        sites = tuple(choices)
        assert sites == tuple(sorted(sites))
        assert sites not in self.asked
        if len(self.asked) == self.stop:
            raise Stopped
        self.asked.append(sites)
        score = damage(sites)
        return score, 100 - score


def damage(sites: tuple[str, ...]) -> float:
    return sum(DAMAGE[n] for n in sites) - (1.5 if {"a", "c"} <= set(sites) else 0)


def recipe(budget: str = "blocks=3", evaluations: int = 40, seed: int = 0) -> Recipe:
    unit, value = budget.split("=")
    return tiny.make_recipe(
        budget={unit: float(value)},
        search={"evaluations": evaluations, "population": 8},
        seed=seed,
    )


def is_plan(sites: tuple[str, ...], budget: Budget) -> bool:
    """Whether the sites meet the budget, and do not without the one that saves most."""
    if budget.blocks:
        return len(sites) == budget.blocks
    saved = [COSTS.sites[name].ms for name in sites]
    wanted = COSTS.ms * (1 - budget.latency)
    return sum(saved) - max(saved) < wanted <= sum(saved)


def run(score: Score, folder: Path, asked: Recipe) -> tuple[Evaluated, list[Evaluated]]:
    return search(score, COSTS, asked, folder, Silent())


@pytest.mark.parametrize(("budget", "seed"), [("blocks=3", 0), ("latency=0.65", 1)])
def test_it_finds_the_best_plan(
    budget: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_memory(folder: Path) -> optuna.Study:  # hundreds of trials, most of them known
        return optuna.create_study(directions=["minimize", "minimize"])

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.setattr(importlib.import_module("updp.search.genetic"), "_open", in_memory)
    asked = recipe(budget, 45, seed)
    assert asked.budget is not None
    best, evaluated = run(Score(), tmp_path, asked)
    everything = [c for k in range(1, 9) for c in combinations(NAMES, k)]
    possible = [s for s in everything if is_plan(s, asked.budget)]
    optimum = min(possible, key=damage)
    assert best == Evaluated(optimum, damage(optimum), 100 - damage(optimum))
    assert best in evaluated
    assert all(is_plan(e.sites, asked.budget) for e in evaluated)
    assert len({e.sites for e in evaluated}) == len(evaluated) <= 45


def test_no_plan_is_scored_twice_and_no_more_than_asked(tmp_path: Path) -> None:
    score = Score()
    _, evaluated = run(score, tmp_path, recipe(evaluations=10))
    assert len(evaluated) == 10
    assert score.asked[:8] == [(n,) for n in NAMES]
    assert len(score.asked) == 18  # each site alone, and the plans


def test_a_space_that_is_smaller_than_the_search_ends_it(tmp_path: Path) -> None:
    _, evaluated = run(Score(), tmp_path, recipe("blocks=8", 4))
    assert [e.sites for e in evaluated] == [tuple(NAMES)]


def test_finished_it_scores_nothing_again(tmp_path: Path) -> None:
    first = run(Score(), tmp_path, recipe(evaluations=10))
    again = Score(stop=0)
    assert run(again, tmp_path, recipe(evaluations=10)) == first
    assert again.asked == []


def reference(tmp_path: Path) -> tuple[tuple[Evaluated, list[Evaluated]], Score]:
    score = Score()
    return run(score, tmp_path / "whole", recipe(evaluations=12)), score


def test_stopped_while_scoring(tmp_path: Path) -> None:
    whole, score = reference(tmp_path)
    asked: list[tuple[str, ...]] = []
    for stop in (0, 9, 1, 4):
        part = Score(stop)
        with pytest.raises(Stopped):
            run(part, tmp_path / "parts", recipe(evaluations=12))
        asked += part.asked
    last = Score()
    assert run(last, tmp_path / "parts", recipe(evaluations=12)) == whole
    assert asked + last.asked == score.asked


@pytest.mark.parametrize("method", ["ask", "tell", "enqueue_trial"])
@pytest.mark.parametrize("before", [True, False])
def test_stopped_around_the_store(
    method: str, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial is left waiting or running, or is told and not yet counted."""
    whole, score = reference(tmp_path)
    asked: list[tuple[str, ...]] = []
    real = getattr(optuna.Study, method)
    for number in (1, 1, 4) if method != "enqueue_trial" else (1, 1):
        calls = 0

        def stopping(study: optuna.Study, *args: object, number: int = number, **kw: object):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls == number and before:
                raise Stopped
            result = real(study, *args, **kw)
            if calls == number:
                raise Stopped
            return result

        monkeypatch.setattr(optuna.Study, method, stopping)
        part = Score()
        with pytest.raises(Stopped):
            run(part, tmp_path / "parts", recipe(evaluations=12))
        asked += part.asked
        monkeypatch.undo()
    last = Score()
    assert run(last, tmp_path / "parts", recipe(evaluations=12)) == whole
    assert asked + last.asked == score.asked


def test_stopped_between_two_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = reference(tmp_path)
    real = optuna.Trial.suggest_float
    calls = 0

    def stopping(trial: optuna.Trial, *args: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise Stopped
        return real(trial, *args)

    monkeypatch.setattr(optuna.Trial, "suggest_float", stopping)
    with pytest.raises(Stopped):
        run(Score(), tmp_path / "parts", recipe(evaluations=12))
    monkeypatch.undo()
    assert run(Score(), tmp_path / "parts", recipe(evaluations=12)) == whole


def test_a_torn_row_costs_one_score(tmp_path: Path) -> None:
    whole, _ = reference(tmp_path)
    folder = tmp_path / "parts"
    with pytest.raises(Stopped):
        run(Score(5), folder, recipe(evaluations=12))
    log = folder / "figures.jsonl"
    log.write_text(log.read_text()[:-9])
    last = Score()
    assert run(last, folder, recipe(evaluations=12)) == whole
    assert last.asked[0] == ("e",)
    rows = Figures(log).rows()
    assert len(rows) == len({tuple(row["sites"]) for row in rows}) == 20


def test_scores_that_are_no_numbers_lose(tmp_path: Path) -> None:
    def score(choices: Mapping[str, str]) -> tuple[float, float]:
        return (float("nan") if "e" in choices else damage(tuple(choices))), 0.0

    best, _ = search(score, COSTS, recipe(evaluations=12), tmp_path, Silent())
    again, _ = search(score, COSTS, recipe(evaluations=12), tmp_path, Silent())
    assert "e" not in best.sites
    assert again == best
