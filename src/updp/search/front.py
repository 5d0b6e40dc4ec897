"""Which of the scored plans are worth having: the Pareto front of score and cost."""

import math
from collections.abc import Callable, Iterable, Mapping

from updp.search.searchers import Task
from updp.search.space import Genome, Limits
from updp.search.store import Evaluated


def pareto(known: Iterable[Evaluated], task: Task) -> list[Evaluated]:
    """The completely scored plans for which none is both cheaper and better; dearest first.

    Cost is in the task's axis. Of plans of equal cost and score the first stays.
    """

    def order(e: Evaluated) -> tuple[float, float, Genome]:
        return cost(task, e.genome), e.score.score, e.genome

    found: list[Evaluated] = []
    complete = (e for e in known if e.score.complete and math.isfinite(e.score.score))
    for evaluated in sorted(complete, key=order):
        if not found or evaluated.score.score < found[-1].score.score:
            found.append(evaluated)
    return found[::-1]


def within(known: Iterable[Evaluated], task: Task, limits: Limits) -> list[Evaluated]:
    """The completely scored plans that keep to the limits, the best first."""
    found = [e for e in known if e.score.complete and limits.met(task.space.cost(e.genome))]
    return sorted(found, key=lambda e: (e.score.score, cost(task, e.genome), e.genome))


def certainly_dominated(
    plan: Genome, known: Mapping[Genome, Evaluated], task: Task
) -> Callable[[float], bool]:
    """Whether a plan whose score cannot fall below a bound can neither be chosen nor on the front.

    For there is one that costs no more, scores better, and keeps to the limits if this one does.
    """
    least, meets = cost(task, plan), task.meets(plan)
    rivals = (e for e in known.values() if e.score.complete and (task.meets(e.genome) or not meets))
    best = min((e.score.score for e in rivals if cost(task, e.genome) <= least), default=math.inf)
    return lambda bound: bound > best


def cost(task: Task, genome: Genome) -> float:
    """In the unit of the task's axis."""
    return float(getattr(task.space.cost(genome), task.axis))
