import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.search import test_loop as contract
from updp import UserError
from updp.measure import Latency, Timing
from updp.recipe.budget import Budget
from updp.search import Score, pareto
from updp.search.choice import choose_plan, finalists, pick, within_latency
from updp.search.front_plot import plot_front
from updp.search.outcome import ScoredPlan, SearchResult

SPACE = contract.SPACE


def latency(speedup: float, noise: float = 0.01) -> Latency:
    def spread(value: float) -> Timing:
        return Timing(value, value * (1 - noise), value * (1 + noise))

    return Latency(spread(10 / speedup), spread(speedup), spread(10 - 10 / speedup))


@pytest.fixture
def searched(tmp_path: Path):  # type: ignore[no-untyped-def]
    task = contract.make_task("random", "latency=0.75", 40)
    return task, contract.run(task, contract.Judge(), tmp_path)


def conclusion(searched, measured=None, refined=None) -> SearchResult:  # type: ignore[no-untyped-def]
    task, known = searched
    return choose_plan(known, refined or {}, task, Budget.parse("latency=0.75"), measured or {})


def test_a_search_result_survives_json(searched) -> None:  # type: ignore[no-untyped-def]
    task, known = searched
    outcome = conclusion(searched)
    assert SearchResult.model_validate_json(outcome.model_dump_json()) == outcome
    assert [p.choices for p in outcome.points] == [SPACE.choices(g) for g in known]
    front = [outcome.points[i].choices for i in outcome.front]
    assert front == [SPACE.choices(e.genome) for e in pareto(known.values(), task)]
    assert outcome.plan.choices == SPACE.choices(finalists(known, {}, task)[0])
    assert outcome.plan.latency <= 0.75 * SPACE.ms
    assert outcome.baseline.latency == SPACE.ms


def test_a_search_whose_scores_are_all_infinite_is_refused(searched, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    task, known = searched
    lost = {g: replace(e, score=Score(math.inf, 0.0, 64)) for g, e in known.items()}
    with pytest.raises(UserError, match=f"none of the {len(known)} plans has a finite score"):
        conclusion((task, lost))
    one = next(g for g in lost if g != SPACE.keep)
    outcome = conclusion((task, lost | {one: known[one]}))
    plot_front(outcome, tmp_path / "front.svg")


def test_scores_after_fit_and_repair_decide(searched) -> None:  # type: ignore[no-untyped-def]
    task, known = searched
    first, second, third, *_ = finalists(known, {}, task)
    scores = {first: 0.3, second: 0.1, third: 0.2}
    refined = {g: replace(known[g], score=Score(s, 90 - s, 10)) for g, s in scores.items()}
    outcome = conclusion(searched, refined=refined)
    assert outcome.plan.choices == SPACE.choices(second)
    assert (outcome.plan.fitted, outcome.plan.fitted_metric) == (0.1, 89.9)
    assert outcome.plan.score == known[second].score.score
    assert sum(p.fitted is not None for p in outcome.points) == 3
    assert outcome.front == conclusion(searched).front
    again = pick(outcome, SPACE, "latency=0.75")  # of all that keep to it, these are known best
    assert again.plan.choices == SPACE.choices(second)
    fast = {second: latency(1.1), third: latency(1.4)}  # and the clock still has its say
    assert conclusion(searched, fast, refined).plan.choices == SPACE.choices(third)


def test_a_plan_of_infinite_score_after_fit_and_repair_is_the_last(searched) -> None:  # type: ignore[no-untyped-def]
    task, known = searched
    first, second, *_ = finalists(known, {}, task)
    lost = {first: replace(known[first], score=Score(math.inf, 0.0, 10))}
    assert finalists(known, lost, task)[0] == second
    outcome = conclusion(searched, refined=lost)
    assert outcome.plan.choices == SPACE.choices(second)
    index = list(known).index(first)
    outcome = SearchResult.model_validate_json(outcome.model_dump_json())
    point = outcome.points[index]
    assert (point.refined, point.fitted, point.last_score) == (True, None, math.inf)
    assert not outcome.plan.refined
    assert pick(outcome, SPACE, "latency=0.75").plan.choices == SPACE.choices(second)
    fast = {first: latency(1.5), second: latency(1.4)}
    assert conclusion(searched, fast, lost).plan.choices == SPACE.choices(second)
    assert conclusion(searched, {first: latency(1.5)}, lost).chosen == index


def test_records_of_an_earlier_version_say_what_was_refined_by_its_score(searched) -> None:  # type: ignore[no-untyped-def]
    outcome = conclusion(searched)
    earlier = outcome.plan.model_dump(exclude={"refined"})
    assert not ScoredPlan.model_validate(earlier).refined
    assert ScoredPlan.model_validate(earlier | {"fitted": 0.5}).last_score == 0.5


def test_measured_latency_decides_among_the_finalists(searched) -> None:  # type: ignore[no-untyped-def]
    """The best plan is slower than predicted, if but a little; the second is not."""
    task, known = searched
    first, second, *rest = finalists(known, {}, task)
    slow, fast, nearly = latency(1.2), latency(1.4), latency(1 / 0.755)
    times = {first: slow, second: fast, **dict.fromkeys(rest, slow)}
    assert conclusion(searched, times).plan.choices == SPACE.choices(second)
    outcome = conclusion(searched, times | {first: nearly})
    assert outcome.plan.choices == SPACE.choices(second)
    measured = outcome.points[list(known).index(first)].measured
    assert measured is not None
    assert measured.low < 0.75 * SPACE.ms < measured.median
    assert within_latency(task, times) == [second]
    # Where none keeps to it, the nearest.
    outcome = conclusion(searched, {g: latency(1.0 + i / 20) for i, g in enumerate(times)})
    assert outcome.plan.choices == SPACE.choices(list(times)[-1])


def test_a_fitted_plan_at_the_limit_is_taken_before_one_that_was_never_fitted(searched) -> None:  # type: ignore[no-untyped-def]
    task, known = searched
    deep, at_limit, slow, *_ = finalists(known, {}, task)
    scores = {at_limit: 0.2, slow: 0.1}
    refined = {g: replace(known[g], score=Score(s, 90, 10)) for g, s in scores.items()}
    times = {deep: latency(1.8), at_limit: latency(1 / 0.755), slow: latency(1.1)}
    assert within_latency(task, times) == [deep]
    outcome = conclusion(searched, times, refined)
    assert outcome.plan.choices == SPACE.choices(at_limit)
    assert pick(outcome, SPACE, outcome.budget).chosen == outcome.chosen
    refined[deep] = replace(known[deep], score=Score(0.9, 50, 10))
    assert conclusion(searched, times, refined).plan.choices == SPACE.choices(deep)


def test_pick_takes_a_line_of_the_front_or_a_budget(searched) -> None:  # type: ignore[no-untyped-def]
    outcome = conclusion(searched)
    lines = [n for n, at in enumerate(outcome.front, 1) if outcome.points[at].choices]
    for line in (lines[0], lines[-1]):
        assert pick(outcome, SPACE, str(line)).chosen == outcome.front[line - 1]
    middle = outcome.points[outcome.front[len(outcome.front) // 2]].latency / SPACE.ms
    faster = pick(outcome, SPACE, f"latency={middle + 1e-6:.6f}")
    keeping = [p for p in outcome.points if p.complete and p.latency <= (middle + 1e-6) * SPACE.ms]
    assert faster.plan.score == min(p.score for p in keeping if p.score is not None)
    assert faster.model_copy(update={"chosen": outcome.chosen}) == outcome


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "--pick 0: the front has lines 1 to "),
        ("99", "--pick 99: the front has lines 1 to "),
        *(
            (x, f"--pick {x!r} is not understood: it takes the number")
            for x in ("best", "1.5", "-1")
        ),
        ("many=1", "budget 'many=1' is not understood"),
        ("latency=0.01", "budget latency=0.01 is out of reach"),
        ("blocks=8,latency=0.32", "--pick 'blocks=8,latency=0.32': none of the plans that were "),
    ],
)
def test_picking_a_missing_point_is_an_error(text: str, said: str, searched) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError) as refused:
        pick(conclusion(searched), SPACE, text)
    assert str(refused.value).startswith(said)


def test_the_baseline_is_no_pick(searched) -> None:  # type: ignore[no-untyped-def]
    outcome = conclusion(searched)
    whole = outcome.model_copy(update={"points": (outcome.baseline,), "front": (0,)})
    with pytest.raises(UserError, match=r"^--pick 1: this line is the baseline itself"):
        pick(whole, SPACE, "1")


def test_plots_of_one_result_are_equal_files(searched, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    outcome = conclusion(searched)
    for name in ("one.svg", "two.svg"):
        plot_front(outcome, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert "</svg>" in text
