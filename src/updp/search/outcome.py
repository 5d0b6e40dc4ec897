"""The result of a search: all plans that were scored, their front, and the chosen plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import BaseModel, model_validator

from updp.candidates import Offers
from updp.errors import UserError
from updp.io.records import Record
from updp.measure import Latency, Timing
from updp.plan import Plan
from updp.recipe import Budget
from updp.search.front import pareto, within
from updp.search.limits import limits_of
from updp.search.searchers import Task
from updp.search.space import Cost, Genome, Limits, Space
from updp.search.store import Evaluated, Scores


class ScoredPlan(BaseModel, extra="forbid", frozen=True):
    """A plan that was scored, with its cost: see `Score` and `Cost`."""

    choices: dict[str, str]
    score: float | None  # None if it was infinite
    top1: float | None
    complete: bool
    fitted: float | None = None  # score after fit and repair, of plans that were refined
    fitted_top1: float | None = None
    latency: float  # predicted
    noise: float
    measured: Timing | None = None  # ms for a batch, of plans that were timed end to end
    macs: float
    parameters: float
    memory: float
    blocks: int

    @property
    def last_score(self) -> float:
        """The score after fit and repair where there is one, else that before; None is infinity."""
        score = self.score if self.fitted is None else self.fitted
        return math.inf if score is None else score

    @property
    def last_top1(self) -> float | None:
        """Top-1 in percent after fit and repair where there is one, else that before."""
        return self.top1 if self.fitted_top1 is None else self.fitted_top1


class SearchResult(Record):
    """All plans of a search in the order of scoring; `front` and `chosen` are indices of `points`.

    `axis` is the unit of cost of the front.
    """

    FILE: ClassVar[str] = "search/front.json"
    axis: str
    budget: str
    searcher: str
    baseline: ScoredPlan
    points: tuple[ScoredPlan, ...]
    front: tuple[int, ...]
    chosen: int

    @model_validator(mode="after")
    def _indices_exist(self) -> SearchResult:
        if not all(0 <= index < len(self.points) for index in (*self.front, self.chosen)):
            raise ValueError("front: no such point")
        return self

    @property
    def plan(self) -> ScoredPlan:
        """The chosen point."""
        return self.points[self.chosen]

    def make_plan(self, offers: Offers, budget: str, hashes: Mapping[str, str]) -> Plan:
        """The chosen point as a `Plan`, with the candidates that `offers` have of its labels."""
        choices = self.plan.choices
        labels = {name: {o.candidate.label: o.candidate for o in offers[name]} for name in choices}
        candidates = {name: labels[name][label].to_json() for name, label in choices.items()}
        return Plan(choices=choices, candidates=candidates, budget=budget, hashes=hashes)


def finalists(known: Scores, refined: Scores, task: Task) -> list[Genome]:
    """The plans to time end to end: the best within the limits, by score after fit and repair.

    By the score before, where no plan within the limits was refined.
    """
    best = within(refined.values(), task, task.limits) or within(known.values(), task, task.limits)
    return [e.genome for e in best[: task.settings.timed]]


def choose_plan(
    known: Scores, refined: Scores, task: Task, budget: Budget, measured: Mapping[Genome, Latency]
) -> SearchResult:
    """Choose the best finalist that keeps to the budget as measured end to end.

    A latency whose lower quartile is within the limit keeps to it. Where none does, the fastest
    plan is chosen.

    Args:
        known: scores before fit and repair.
        refined: scores after fit and repair, of some plans or none.
        task: what was searched for.
        budget: as the user wrote it, for the record.
        measured: latencies of the finalists, compared with the baseline.
    """
    candidates, space = finalists(known, refined, task), task.space
    times = {genome: _timing(latency, space) for genome, latency in measured.items()}
    limit = task.limits.amounts.get("latency", math.inf)
    nearest = min(candidates, key=lambda g: times[g].median if g in times else 0.0)
    keeping = (g for g in candidates if g not in times or times[g].low <= limit)
    chosen = next(keeping, nearest)
    genomes = list(known)
    if space.keep in known:
        baseline = _scored_plan(space, known[space.keep])
    else:
        whole = vars(space.baseline)
        baseline = ScoredPlan(choices={}, score=None, top1=None, complete=False, **whole)
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
    )


def pick(result: SearchResult, space: Space, text: str) -> SearchResult:
    """Choose another point of a search, by the number of a line of its front or by a budget.

    Raises UserError when there is no such point.
    """
    if text.isdigit():
        if not 1 <= int(text) <= len(result.front):
            raise UserError(
                f"--pick {text}: the front has lines 1 to {len(result.front)} (`updp search` "
                "shows them)"
            )
        return result.model_copy(update={"chosen": result.front[int(text) - 1]})
    limits = limits_of(Budget.parse(text), space)
    keeping = [i for i, p in enumerate(result.points) if p.complete and _meets(p, limits)]
    if not keeping:
        raise UserError(
            f"--pick {text!r}: none of the plans that were scored keeps to it; search again with "
            f"--budget {text}"
        )
    repaired = [i for i in keeping if result.points[i].fitted is not None]
    chosen = min(repaired or keeping, key=lambda i: (result.points[i].last_score, i))
    return result.model_copy(update={"chosen": chosen})


def _meets(point: ScoredPlan, limits: Limits) -> bool:
    cost = Cost(**{name: getattr(point, name) for name in Cost.__dataclass_fields__})
    measured = point.measured
    return limits.met(cost if measured is None else replace(cost, latency=measured.low))


def _timing(latency: Latency, space: Space) -> Timing:
    """Latency in ms, from the speed-up and the baseline's first latency.

    The machine may have become slower since the candidates were timed.
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
        top1=score.top1,
        complete=score.complete,
        fitted=_finite(refined.score.score) if refined else None,
        fitted_top1=refined.score.top1 if refined else None,
        measured=measured,
        **costs,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
