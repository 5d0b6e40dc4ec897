"""The choice of a plan: the best of the scored plans whose measured latency meets the budget."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from updp.errors import UserError
from updp.measure import Latency, Timing
from updp.recipe import Budget
from updp.recipe.text import quoted
from updp.search.front import pareto, within
from updp.search.limits import limits_of
from updp.search.outcome import ScoredPlan, SearchResult
from updp.search.scores import Evaluated, Scores
from updp.search.searchers import SearchTask
from updp.search.space import Cost, Genome, Limits, Space


def finalists(known: Scores, refined: Scores, task: SearchTask) -> list[Genome]:
    """The plans to time end to end: the best within the limits, by score after fit and repair.

    If no plan within the limits has a finite score of this kind, by score before.
    """
    best = next(filter(None, _ranked(known, refined, task, task.limits)), [])
    return best[: task.settings.timed]


def within_latency(task: SearchTask, measured: Mapping[Genome, Latency]) -> list[Genome]:
    """The plans whose measured median latency is within the limit."""
    limit = task.limits.amounts.get("latency", math.inf)
    return [g for g, latency in measured.items() if _timing(latency, task.space).median <= limit]


def _allowed(
    task: SearchTask, measured: Mapping[Genome, Latency], refined: Scores
) -> Collection[Genome]:
    """The measured plans to choose among: those that keep to the limit; of none, the fastest.

    Where none of them was scored after fit and repair, also those that were, and whose lower
    quartile is within the limit: the clock cannot tell them from it, and a plan that was not fitted
    keeps to it by far more than is needed, at the cost of its accuracy.
    """
    keeps = within_latency(task, measured)
    if refined.keys().isdisjoint(keeps):
        limit = task.limits.amounts.get("latency", math.inf)
        times = {g: _timing(latency, task.space) for g, latency in measured.items()}
        keeps += [g for g, time in times.items() if g in refined and time.low <= limit]
        keeps = keeps or [min(times, key=lambda g: times[g].median)]
    return keeps


def choose_plan(
    known: Scores,
    refined: Scores,
    task: SearchTask,
    budget: Budget,
    measured: Mapping[Genome, Latency],
) -> SearchResult:
    """Choose the best of the measured plans that keep to the budget, see `_allowed`.

    If no plan was measured, choose the best of the finalists.

    Args:
        known: scores before fit and repair.
        refined: scores after fit and repair, for some plans or none.
        task: the task of the search.
        budget: the budget as the user wrote it, for the record.
        measured: latencies of plans, compared with the baseline.

    Raises:
        UserError: no pruned plan has a finite score.
    """
    space = task.space
    pruned = [e for e in (*known.values(), *refined.values()) if e.genome != space.keep]
    if pruned and not any(math.isfinite(e.score.score) for e in pruned):
        raise UserError(
            f"none of the {len(known)} plans has a finite score: with every one the model's "
            "outputs on held-out images are infinite or NaN; are its weights and the images sound?"
        )
    times = {genome: _timing(latency, space) for genome, latency in measured.items()}
    if times:
        ranked = chain(*_ranked(known, refined, task, Limits()))
        allowed = _allowed(task, measured, refined)
        chosen = next(genome for genome in ranked if genome in allowed)
    else:
        chosen = finalists(known, refined, task)[0]
    genomes = list(known)
    if space.keep in known:
        baseline = _scored_plan(space, known[space.keep])
    else:
        whole = vars(space.baseline)
        baseline = ScoredPlan(choices={}, score=None, metric=None, complete=False, **whole)
    return SearchResult(
        axis=task.axis,
        budget=str(budget),
        searcher=task.settings.searcher,
        baseline=baseline,
        points=tuple(
            _scored_plan(space, e, times.get(g), refined.get(g)) for g, e in known.items()
        ),
        front=tuple(genomes.index(e.genome) for e in pareto(known.values(), task)),
        chosen=genomes.index(chosen),
        metric=task.metric,
    )


def pick(result: SearchResult, space: Space, text: str) -> SearchResult:
    """Choose another point of a search, by its line number in the front or by a budget.

    Raises UserError if there is no such point.
    """
    if text.isdecimal():
        if not 1 <= int(text) <= len(result.front):
            raise UserError(
                f"--pick {text}: the front has lines 1 to {len(result.front)} (`updp search` "
                "shows them)"
            )
        chosen = result.front[int(text) - 1]
        if not result.points[chosen].choices:
            raise UserError(
                f"--pick {text}: this line is the baseline itself, in which nothing is pruned: "
                "take another (`updp search` shows them)"
            )
        return result.model_copy(update={"chosen": chosen})
    if "=" not in text:
        raise UserError(
            f"--pick {quoted(text)} is not understood: it takes the number of a line of the front "
            "(`updp search` shows them), or a budget such as macs=60%"
        )
    limits = limits_of(Budget.parse(text), space)
    complete = [i for i, p in enumerate(result.points) if p.complete]
    met = [i for i in complete if _meets(result.points[i], limits)]
    if all(result.points[i].fitted is None for i in met):  # as a search chooses, see `_allowed`
        low = [i for i in complete if _meets(result.points[i], limits, by_low=True)]
        met += [i for i in low if result.points[i].fitted is not None]
    if not met:
        raise UserError(
            f"--pick {text!r}: none of the plans that were scored keeps to it; search again with "
            f"--budget {text}"
        )
    repaired = [i for i in met if result.points[i].fitted is not None]  # finite only
    chosen = min(repaired or met, key=lambda i: (result.points[i].last_score, i))
    return result.model_copy(update={"chosen": chosen})


def _ranked(
    known: Scores, refined: Scores, task: SearchTask, limits: Limits
) -> tuple[list[Genome], list[Genome], list[Genome]]:
    """The completely scored plans within the limits, in three lists with the best first.

    By score after fit and repair; by score before; those with an infinite score after.
    """
    scored = within(refined.values(), task, limits)
    failed = [e.genome for e in scored if not math.isfinite(e.score.score)]
    repaired = [e.genome for e in scored if math.isfinite(e.score.score)]
    before = [e.genome for e in within(known.values(), task, limits)]
    return repaired, [g for g in before if g not in failed], failed


def _meets(point: ScoredPlan, limits: Limits, *, by_low: bool = False) -> bool:
    """Whether a plan keeps to limits, by its measured median or, `by_low`, its lower quartile."""
    cost = Cost(**{name: getattr(point, name) for name in Cost.__dataclass_fields__})
    if (measured := point.measured) is None:
        return limits.met(cost)
    return limits.met(replace(cost, latency=measured.low if by_low else measured.median))


def _timing(latency: Latency, space: Space) -> Timing:
    """Latency in ms, computed from the speed-up and the baseline's first latency.

    Measured times are not used, as the machine may be slower now than when candidates were timed.
    """
    s = latency.speedup
    return Timing(median=space.ms / s.median, low=space.ms / s.high, high=space.ms / s.low)


def _scored_plan(
    space: Space,
    evaluated: Evaluated,
    measured: Timing | None = None,
    refined: Evaluated | None = None,
) -> ScoredPlan:
    score = evaluated.score
    costs: dict[str, Any] = vars(space.cost(evaluated.genome))
    return ScoredPlan(
        choices=space.choices(evaluated.genome),
        score=_finite(score.score),
        metric=score.metric,
        complete=score.complete,
        refined=refined is not None,
        fitted=_finite(refined.score.score) if refined else None,
        fitted_metric=refined.score.metric if refined else None,
        measured=measured,
        **costs,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
