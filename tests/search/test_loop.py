"""The contract of every searcher, and of the loop around it."""

import os
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import pytest

from tests import tiny
from tests.sampling import every_other
from tests.search.spaces import plans, task
from updp.errors import UserError
from updp.io import processes
from updp.io.progress import Silent
from updp.recipe import Recipe
from updp.recipe.budget import Budget
from updp.search import (
    SEARCHERS,
    Evaluated,
    Option,
    Score,
    ScoreFile,
    SearchTask,
    SiteOptions,
    Space,
    limits_of,
    search,
    within,
)
from updp.search.space import Genome

NAMES = "abcdefgh"
DAMAGE = dict(zip(NAMES, (0.9, 0.2, 0.75, 0.4, 0.1, 0.6, 0.35, 0.5), strict=True))
# Dear sites do more damage; what saves more of a site's cost does twice as much.
SPACE = Space(
    tuple(
        SiteOptions(
            n, (Option("mild", 1 + i / 4, 50 + 7 * i), Option("hard", 1.5 + i / 4, 80 + 7 * i))
        )
        for i, n in enumerate(NAMES)
    ),
    ms=24.0,
    macs=1200,
)
BUDGETS = ("blocks=4", "latency=0.65", "macs=0.7,latency=0.9", "blocks=5,latency=0.66")


class Stopped(Exception):
    pass


def damage(choices: Mapping[str, str]) -> float:
    """Additive but for two pairs: `a` is harmless beside `c`, `b` and `e` do not go together."""
    total = 0.01 + sum(DAMAGE[n] * (2 if kind == "hard" else 1) for n, kind in choices.items())
    return total - 1.5 * ({"a", "c"} <= set(choices)) + 0.8 * ({"b", "e"} <= set(choices)) + 1.0


class Judge:
    """Remembers what it was asked, and may stop; says early what is hopeless."""

    def __init__(self, stop: int | None = None) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.stop = stop

    def __call__(self, choices: Mapping[str, str], hopeless: Callable[[float], bool]) -> Score:
        if len(self.asked) == self.stop:
            raise Stopped
        key = tuple(map(":".join, choices.items()))
        assert key not in self.asked
        self.asked.append(key)
        score = damage(choices)
        early = hopeless(score / 2)
        return Score(score, 100 - score, 5 if early else 10, complete=not early)


def make_task(
    searcher: str, budget: str = "blocks=4", evaluations: int = 60, **changes: object
) -> SearchTask:
    limits = limits_of(Budget.parse(budget), SPACE)
    changes = {"population": 8, **changes}
    seed = int(str(changes.pop("seed", 0)))
    return task(SPACE, limits, searcher, seed, evaluations=evaluations, **changes)


def run(asked: SearchTask, judge: Judge, folder: Path) -> dict[Genome, Evaluated]:
    return search(asked, judge, ScoreFile(folder / "scores.jsonl"), Silent())


def scores(known: Mapping[Genome, Evaluated]) -> list[tuple[Genome, Score]]:
    return [(genome, evaluated.score) for genome, evaluated in known.items()]


@pytest.mark.parametrize("searcher", SEARCHERS)
@pytest.mark.parametrize("budget", every_other(BUDGETS))
def test_searchers_keep_the_contract(searcher: str, budget: str, tmp_path: Path) -> None:
    asked, judge = make_task(searcher, budget), Judge()
    known = run(asked, judge, tmp_path)
    first = SEARCHERS[searcher](asked).preliminaries()
    assert len(known) == len(judge.asked) <= len(first) + 60
    assert list(known)[: len(first)] == sorted(first)
    found = within(known.values(), asked, asked.limits)
    assert found
    assert all(asked.limits.met(SPACE.cost(e.genome)) for e in found)
    assert {g: e.score.score for g, e in known.items()} == {
        g: damage(SPACE.choices(g)) for g in known
    }
    # With some luck it does better than chance: at least as well as the middle of all plans.
    every = sorted(damage(SPACE.choices(g)) for g in plans(SPACE) if asked.meets(g))
    assert found[0].score.score <= every[len(every) // 2]


@pytest.mark.parametrize("budget", BUDGETS[3:])
def test_the_default_finds_the_optimum_of_eight_sites(budget: str, tmp_path: Path) -> None:
    asked = make_task(Recipe().search.searcher, budget, 150)
    known = run(asked, Judge(), tmp_path)
    optimum = min(damage(SPACE.choices(g)) for g in plans(SPACE) if asked.meets(g))
    assert within(known.values(), asked, asked.limits)[0].score.score == optimum


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_a_stopped_search_resumes_with_the_same_scores(searcher: str, tmp_path: Path) -> None:
    asked, whole = make_task(searcher, evaluations=25), Judge()
    expected = run(asked, whole, tmp_path / "whole")
    parts: list[tuple[str, ...]] = []
    for stop in (0, 1, 13, 5):
        judge = Judge(stop)
        with pytest.raises(Stopped):
            run(asked, judge, tmp_path / "parts")
        parts += judge.asked
    last = Judge()
    assert scores(run(asked, last, tmp_path / "parts")) == scores(expected)
    assert sorted(parts + last.asked) == sorted(whole.asked)
    again = Judge(stop=0)
    assert scores(run(asked, again, tmp_path / "parts")) == scores(expected)


def search_together(folder: str) -> None:
    """Each of three processes asks for its own share of the plans, and all end alike."""
    processes.join(cuda=False)
    judge, asked = Judge(), make_task("bayes", evaluations=25)
    with processes.on_its_own():
        alone = run(asked, Judge(), Path(folder) / f"{os.environ['RANK']}")
    assert scores(run(asked, judge, Path(folder) / "shared")) == scores(alone)
    counts = processes.all_gather(len(judge.asked))
    assert sum(counts) == len(alone)
    assert max(counts) - min(counts) <= 8  # rounds of eight cannot be shared evenly


def test_processes_share_the_plans_and_end_alike(tmp_path: Path) -> None:
    tiny.together(3, search_together, str(tmp_path))


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_a_search_ends_when_a_small_space_is_exhausted(searcher: str, tmp_path: Path) -> None:
    small = Space(SPACE.sites[:2], SPACE.ms, SPACE.macs)
    asked = task(small, limits_of(Budget.parse("blocks=2"), small), searcher, evaluations=500)
    known = search(asked, Judge(), ScoreFile(tmp_path / "scores.jsonl"), Silent())
    assert {g for g in known if asked.meets(g)} == {(1, 1), (1, 2), (2, 1), (2, 2)}


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_a_search_ends_where_one_plan_meets_the_budget(searcher: str, tmp_path: Path) -> None:
    sites = tuple(SiteOptions(c.name, c.options[:1]) for c in SPACE.sites[:4])
    small = Space(sites, SPACE.ms, SPACE.macs)
    asked = task(small, limits_of(Budget.parse("blocks=4"), small), searcher, evaluations=500)
    known = search(asked, Judge(), ScoreFile(tmp_path / "scores.jsonl"), Silent())
    assert {g for g in known if asked.meets(g)} == {(1, 1, 1, 1)}


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_infinite_scores_are_never_best(searcher: str, tmp_path: Path) -> None:
    def judge(choices: Mapping[str, str], hopeless: Callable[[float], bool]) -> Score:
        bad = "e" in choices
        return Score(float("inf") if bad else damage(choices), 0.0, 10)

    asked = make_task(searcher, evaluations=30)
    known = search(asked, judge, ScoreFile(tmp_path / "scores.jsonl"), Silent())
    assert "e" not in SPACE.choices(within(known.values(), asked, asked.limits)[0].genome)


def test_a_model_that_cannot_be_pruned_at_all_is_said(tmp_path: Path) -> None:
    def judge(choices: Mapping[str, str], hopeless: Callable[[float], bool]) -> Score:
        return Score(float("inf") if choices else 0.0, 0.0, 10)

    task = make_task("bayes", evaluations=30)
    with pytest.raises(UserError, match="no site can be pruned without infinite or NaN logits"):
        search(task, judge, ScoreFile(tmp_path / "scores.jsonl"), Silent())


def test_stopping_early_changes_no_front(tmp_path: Path) -> None:
    full, early = (
        run(make_task("random", stop_early=stop), Judge(), tmp_path / str(stop))
        for stop in (False, True)
    )
    asked = make_task("random")
    assert list(full) == list(early)
    assert any(not e.score.complete for e in early.values())
    best = [within(known.values(), asked, asked.limits)[0].genome for known in (full, early)]
    assert best[0] == best[1]


def test_random_plans_follow_the_seed() -> None:
    asked = [make_task("random", seed=seed) for seed in (0, 0, 1)]
    first = [[t.random(i) for i, _ in zip(count(), range(5), strict=False)] for t in asked]
    assert first[0] == first[1] != first[2]
    assert all(t.meets(plan) for t, found in zip(asked, first, strict=True) for plan in found)


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_a_search_that_ends_on_the_way_has_a_plan_within_the_limits(
    searcher: str, tmp_path: Path
) -> None:
    asked = make_task(searcher, "latency=0.55", 4, population=4)
    known = run(asked, Judge(), tmp_path)
    assert within(known.values(), asked, asked.limits)
