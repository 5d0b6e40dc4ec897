"""The Pareto front of score and cost, and the plans within limits."""

import math
from collections.abc import Iterable

from updp.search.score import Hopeless
from updp.search.scores import Evaluated, Scores
from updp.search.searchers import SearchTask
from updp.search.space import Genome, Limits


def pareto(known: Iterable[Evaluated], task: SearchTask) -> list[Evaluated]:
    """The completely scored plans that no plan beats in both cost and score; most costly first.

    Cost is in the unit `task.axis`. Of plans with equal cost and score the first is kept.
    """

    def order(e: Evaluated) -> tuple[float, float, Genome]:
        return task.cost(e.genome), e.score.score, e.genome

    front: list[Evaluated] = []
    complete = (e for e in known if e.score.complete and math.isfinite(e.score.score))
    for evaluated in sorted(complete, key=order):
        if not front or evaluated.score.score < front[-1].score.score:
            front.append(evaluated)
    return front[::-1]


def within(known: Iterable[Evaluated], task: SearchTask, limits: Limits) -> list[Evaluated]:
    """The completely scored plans within the limits, the best first."""
    found = [e for e in known if e.score.complete and limits.met(task.space.cost(e.genome))]
    return sorted(found, key=lambda e: (e.score.score, task.cost(e.genome), e.genome))


def certainly_dominated(plan: Genome, known: Scores, task: SearchTask) -> Hopeless:
    """Test for a plan that, by a lower bound of its score, can be neither chosen nor on the front.

    It is true if a known plan costs no more, scores better than the bound, and is within the
    limits if this plan is.
    """
    least, meets = task.cost(plan), task.meets(plan)
    rivals = (e for e in known.values() if e.score.complete and (task.meets(e.genome) or not meets))
    best = min((e.score.score for e in rivals if task.cost(e.genome) <= least), default=math.inf)
    return lambda bound: bound > best
