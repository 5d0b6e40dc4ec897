"""Plans after fit and repair: what is proposed, and what is learnt from a few of them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.search.spaces import plans, task
from updp.io.progress import Silent
from updp.search import (
    Evaluated,
    Limits,
    Option,
    Score,
    ScoreFile,
    SearchTask,
    SiteOptions,
    Space,
    refine,
)
from updp.search.searchers.refined import Refined
from updp.search.space import Genome

SITES = 6
SPACE = Space(
    tuple(
        SiteOptions(
            f"s{i}", (Option("little", 8, 10), Option("much", 14, 20), Option("all", 15, 30))
        )
        for i in range(SITES)
    ),
    100,
    300,
)
ALONE = np.array([[1.0, 3.0, 6.0]] * SITES) * np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])[:, None]


def alone(genome: Genome) -> float:
    """Late sites do least."""
    return 0.2 + sum(ALONE[i, j - 1] for i, j in enumerate(genome) if j)


def left(genome: Genome) -> float:
    """After repair: early sites do least, and it hardly matters what is left of them."""
    parts = (
        ALONE[i, j - 1] ** (0.2 + 0.15 * i) * (0.1 + 0.2 * i) for i, j in enumerate(genome) if j
    )
    return 0.2 + sum(parts)


def asked(refined: int) -> SearchTask:
    return task(SPACE, Limits({"latency": 60.0}), refined=refined)


def scored(score: Callable[[Genome], float]) -> dict[Genome, Evaluated]:
    """By a search that knows single candidates, and a few plans."""
    few = [g for g in plans(SPACE)[::97] if asked(0).meets(g)]
    genomes = [SPACE.keep, *SPACE.singles(), *few]
    return {g: Evaluated(g, Score(score(g), 0.0, 1)) for g in genomes}


class Judge:
    def __init__(self) -> None:
        self.seen: list[Genome] = []

    def __call__(self, choices: Mapping[str, str], hopeless: object) -> Score:
        self.seen.append(SPACE.genome(choices))
        return Score(left(self.seen[-1]), 0.0, 1)


def run(refined: int, folder: Path) -> tuple[dict[Genome, Evaluated], Judge]:
    judge, file = Judge(), ScoreFile(folder / "scores.jsonl")
    return refine(asked(refined), scored(alone), judge, file, Silent()), judge


def test_the_best_plan_after_repair_is_found(tmp_path: Path) -> None:
    every = [g for g in plans(SPACE) if asked(0).meets(g)]
    best = min(every, key=left)
    assert best != min(every, key=alone)  # which is another one
    found, judge = run(24, tmp_path)
    within = [g for g in found if asked(0).meets(g)]
    assert min(map(left, within)) == pytest.approx(left(best), rel=0.02)
    assert len(judge.seen) == len(set(judge.seen)) == len(found) == 24


def test_refinement_ends_the_same_after_a_kill(tmp_path: Path) -> None:
    whole, _ = run(14, tmp_path / "whole")

    class Killed(Judge):
        def __call__(self, choices: Mapping[str, str], hopeless: object) -> Score:
            if len(self.seen) == 9:
                raise KeyboardInterrupt
            return super().__call__(choices, hopeless)

    file = ScoreFile(tmp_path / "parts" / "scores.jsonl")
    with pytest.raises(KeyboardInterrupt):
        refine(asked(14), scored(alone), Killed(), file, Silent())
    again, judge = run(14, tmp_path / "parts")
    assert {g: e.score for g, e in again.items()} == {g: e.score for g, e in whole.items()}
    assert len(judge.seen) == 5


def test_a_few_fitted_candidates_predict_the_others() -> None:
    """Where damages follow the line exactly, a third of the candidates say all of them."""

    def lawful(genome: Genome) -> float:
        (i,) = np.flatnonzero(genome)
        t, log = i / (SITES - 1), np.log(ALONE[i, genome[i] - 1])
        return 0.2 + float(np.exp(-2 + 0.4 * log + 1.5 * t + 0.3 * t * log))

    singles = SPACE.singles()
    searcher = Refined(asked(0), {g: alone(g) for g in (SPACE.keep, *singles)})
    told = {g: lawful(g) for g in singles[::3] + singles[1::3]}
    expected = searcher.expected(told)
    for genome in singles:
        assert expected[genome] - 0.2 == pytest.approx(lawful(genome) - 0.2, rel=0.15)
    assert all(expected[g] == score for g, score in told.items())


def test_without_fitted_scores_the_searched_scores_are_expected() -> None:
    known = {g: alone(g) for g in (SPACE.keep, *SPACE.singles())}
    assert Refined(asked(0), known).expected({}) == pytest.approx(known)


def test_refinement_begins_with_the_best_plan_and_candidates_from_all_over() -> None:
    known = scored(alone)
    searcher = Refined(asked(12), {g: e.score.score for g, e in known.items()})
    first = searcher.preliminaries()
    assert first[-1] == min((g for g in known if asked(0).meets(g)), key=alone)
    assert all(sum(map(bool, g)) == 1 for g in first[:-1])
    assert [g for g in first if g[0]]
    assert [g for g in first if g[-1]]
    assert len(first) == 12 // 3 + 1
    broken = {g: np.inf if sum(map(bool, g)) == 1 and g[2] else alone(g) for g in known}
    assert all(np.isfinite(v) for v in Refined(asked(12), broken).expected({}).values())
