"""A model of the score: what each candidate adds, from the plans that are known.

Each candidate's damage alone is where it begins. Plans of several say how damages really add up:
ridge regression on what the model gets wrong, the more trusted the better a plan is.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from updp.search.searchers.base import Known, Task
from updp.search.space import Genome, Limits


class Surrogate:
    """Predicts scores, above the baseline's, as a sum over candidates."""

    def __init__(self, task: Task, known: Known, ridge: float = 3.0) -> None:
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
        # How much more (or less) than the sum plans of several do, in the main.
        scale = float(predicted @ damages) / max(float(predicted @ predicted), 1e-12)
        self.weights = self.weights * max(scale, 0.1)
        wrong = damages - features @ self.weights
        positive = np.maximum(damages, 1e-9)
        trust = np.square(np.divide(positive.min(), positive))
        normal = features.T @ (trust[:, None] * features)
        normal += ridge * trust.mean() * np.eye(len(self.weights))
        self.weights = self.weights + np.linalg.solve(normal, features.T @ (trust * wrong))

    def of(self, genome: Genome) -> float:
        """The prediction for a plan, from 0 for the baseline."""
        return float(self.task.program.features(np.array([genome]))[0] @ self.weights)

    def best(self) -> Iterator[Genome]:
        """The best plan within the limits, exactly, and its neighbours."""
        plan = self.task.program.best(list(self.weights), self.task.limits)
        if plan is not None:
            yield plan
            yield from self.neighbours(plan)

    def front(self, levels: int) -> Iterator[Genome]:
        """The best predicted plan within the limits, and at even steps of cost on both sides."""
        task = self.task
        yield from islice(self.best(), 1)
        least = task.program.least(task.axis, Limits())
        whole = float(getattr(task.space.baseline, task.axis))
        if least is None:
            return
        for i in range(1, levels):
            amount = whole + (least - whole) * i / levels
            plan = task.program.best(list(self.weights), Limits({task.axis: amount}))
            if plan is not None:
                yield plan

    def neighbours(self, genome: Genome) -> Iterator[Genome]:
        """Plans within the limits that differ at one or two sites, by prediction."""
        task = self.task
        counts = [len(site.options) for site in task.space.sites]
        ones = [(i, j) for i, n in enumerate(counts) for j in range(n + 1) if j != genome[i]]
        sites = np.array([i for i, _ in ones])
        first, second = np.triu_indices(len(ones))  # a change with itself is one change
        apart = (first == second) | (sites[first] != sites[second])
        first, second = first[apart], second[apart]
        values = np.array([j for _, j in ones])
        plans = np.tile(np.array(genome), (len(first), 1))
        rows = np.arange(len(first))
        plans[rows, sites[first]] = values[first]
        plans[rows, sites[second]] = values[second]
        plans = plans[task.program.met(plans, task.limits)]
        order = np.argsort(task.program.features(plans) @ self.weights, kind="stable")
        return (tuple(map(int, plan)) for plan in plans[order])


def best_known(task: Task, known: Known) -> Genome | None:
    """The known plan within the limits that scores best."""
    within: Sequence[Genome] = [g for g in known if task.meets(g)]
    return min(within, key=lambda g: (known[g], g), default=None)
