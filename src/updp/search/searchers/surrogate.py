"""The surrogate: an additive model of the score, with one weight for each candidate.

Weights start from the damage of each candidate alone. Plans with several candidates correct them by
ridge regression on the model's errors, in which better plans count more.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from updp.search.searchers.base import Known, SearchTask
from updp.search.space import Genome, Limits

_LEVELS = 8  # number of cost levels on the front that opens a search


class Surrogate:
    """Predicts how far a plan scores above the baseline, as a sum over its candidates."""

    def __init__(self, task: SearchTask, known: Known, ridge: float = 3.0) -> None:
        self.task = task
        space = task.space
        base = known[space.keep]
        finite = [s for s in known.values() if math.isfinite(s)]
        worst = max(finite, default=1.0)

        def damage(genome: Genome) -> float:
            return min(known.get(genome, worst), 10 * worst) - base

        self.weights: NDArray[np.float64] = np.array([damage(g) for g in space.singles()])
        plans = [g for g in known if sum(map(bool, g)) > 1 and math.isfinite(known[g])]
        if plans:
            self._correct(plans, np.array([damage(g) for g in plans]), ridge)

    def _correct(self, plans: list[Genome], damages: NDArray[np.float64], ridge: float) -> None:
        features = self.task.program.features(np.array(plans))
        predicted = features @ self.weights
        # On average, plans of several candidates may do more or less damage than the sum.
        scale = float(predicted @ damages) / max(float(predicted @ predicted), 1e-12)
        self.weights = self.weights * max(scale, 0.1)
        errors = damages - features @ self.weights
        positive = np.maximum(damages, 1e-9)
        trust = np.square(np.divide(positive.min(), positive))
        normal = features.T @ (trust[:, None] * features)
        normal += ridge * trust.mean() * np.eye(len(self.weights))
        self.weights = self.weights + np.linalg.solve(normal, features.T @ (trust * errors))

    def of(self, genome: Genome) -> float:
        """The prediction for a plan; 0 for the baseline."""
        return float(self.task.program.sums(np.array([genome]), self.weights)[0])

    def best(self) -> Iterator[Genome]:
        """The exactly best predicted plan within the limits, then its neighbours."""
        plan = self.task.program.best(self.weights, self.task.limits)
        if plan is not None:
            yield plan
            yield from self.neighbours(plan)

    def front(self, levels: int) -> Iterator[Genome]:
        """The best predicted plan within the limits, and one for each of several levels of cost."""
        task = self.task
        yield from islice(self.best(), 1)
        least = task.program.least(task.axis, Limits())
        if least is None:
            return
        whole = task.cost(task.space.keep)
        for i in range(1, levels):
            amount = whole + (least - whole) * i / levels
            plan = task.program.best(self.weights, Limits({task.axis: amount}))
            if plan is not None:
                yield plan

    def opening(self, known: Known) -> Iterable[Genome]:
        """The front, as long as no plan with several candidates is known; else nothing."""
        space = self.task.space
        return self.front(_LEVELS) if known.keys() <= {space.keep, *space.singles()} else ()

    def neighbours(self, genome: Genome) -> Iterator[Genome]:
        """Plans within the limits that differ at one or two sites, the best predicted first."""
        task = self.task
        counts = [len(site.options) for site in task.space.sites]
        changes = [(i, j) for i, n in enumerate(counts) for j in range(n + 1) if j != genome[i]]
        sites = np.array([i for i, _ in changes])
        values = np.array([j for _, j in changes])
        # Pairs of changes at two sites; a pair of a change with itself is a single change.
        first, second = np.triu_indices(len(changes))
        apart = (first == second) | (sites[first] != sites[second])
        first, second = first[apart], second[apart]
        plans = np.tile(np.array(genome), (len(first), 1))
        rows = np.arange(len(first))
        plans[rows, sites[first]] = values[first]
        plans[rows, sites[second]] = values[second]
        plans = plans[task.program.met(plans, task.limits)]
        order = np.argsort(task.program.sums(plans, self.weights), kind="stable")
        return (tuple(map(int, plan)) for plan in plans[order])

    def neighbours_of_best(self, known: Known) -> Iterator[Genome]:
        """Neighbours of the best known plan within the limits, if there is one."""
        for plan in ranked(self.task, known)[:1]:
            yield from self.neighbours(plan)


def ranked(task: SearchTask, known: Known) -> list[Genome]:
    """The known plans within the limits, the best first."""
    return sorted((g for g in known if task.meets(g)), key=lambda g: (known[g], g))
