"""Bayesian optimisation over plans: a Gaussian process that knows what goes with what.

Damages do not simply add up: what a candidate does depends on what else is pruned. The process is
on the logarithm of the score, with two kernels: a linear one on candidates (additive damage) and
an exponential one on the number of sites at which two plans differ (plans that are alike score
alike). Its few settings are those of the highest likelihood. Rasmussen & Williams, *Gaussian
Processes for Machine Learning*, 2006, sections 2.2 and 5.4.1.
"""

import math
from collections.abc import Iterator
from itertools import islice, product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky

from updp.io.seeds import mix
from updp.search.searchers.base import Known, Searcher, Task
from updp.search.searchers.surrogate import Surrogate
from updp.search.space import Genome

_LEVELS = 8  # of the surrogate's front, which is scored first
_PARENTS = 4  # the best plans, from which better ones are looked for
_STRANGERS = 2  # and plans at random, too
_EXPECTED = 2  # plans scored because they are expected to be best; the others may well be
_SAMPLED = 1000  # the most promising plans, among which the process is sampled
Array = NDArray[np.float64]


class Process:
    """A Gaussian process on log scores of plans."""

    def __init__(self, task: Task, known: Known) -> None:
        self.task = task
        self.plans = [g for g in known if math.isfinite(known[g])]
        scores = np.array([known[g] for g in self.plans])
        logs = np.log(np.maximum(scores, 1e-6 * scores.max(initial=1e-12)))
        self.mean, self.spread = float(logs.mean()), float(logs.std()) or 1.0
        self._features, self._numbers = self._encoded(self.plans)
        values = (logs - self.mean) / self.spread
        settings = product((0.3, 1.0, 3.0), (0.3, 1.0), (2.0, 4.0, 8.0, 16.0), (1e-3, 1e-2))
        self._linear, self._alike, self._length, self._noise = max(
            settings, key=lambda s: self._likelihood(values, *s)
        )
        self._factor = self._cholesky(self._linear, self._alike, self._length, self._noise)
        self._solved = cho_solve((self._factor, True), values)

    def predict(self, plans: list[Genome]) -> tuple[Array, Array]:
        """Mean (n,) and covariance (n, n) of the log scores, standardised."""
        features, numbers = self._encoded(plans)
        settings = self._linear, self._alike, self._length
        across = self._kernel(features, self._features, numbers, self._numbers, *settings)
        prior = self._kernel(features, features, numbers, numbers, *settings)
        explained = across @ cho_solve((self._factor, True), across.T)
        return across @ self._solved, prior - explained

    def means(self, plans: list[Genome]) -> Array:
        """The mean alone, of many."""
        features, numbers = self._encoded(plans)
        settings = self._linear, self._alike, self._length
        across = self._kernel(features, self._features, numbers, self._numbers, *settings)
        return across @ self._solved

    def _encoded(self, plans: list[Genome]) -> tuple[Array, NDArray[np.int64]]:
        """One column per candidate (n, candidates), and the genomes themselves (n, sites)."""
        numbers = np.array(plans, dtype=np.int64).reshape(len(plans), -1)
        return self.task.program.features(numbers), numbers

    @staticmethod
    def _kernel(
        a: Array,
        b: Array,
        p: NDArray[np.int64],
        q: NDArray[np.int64],
        linear: float,
        alike: float,
        length: float,
    ) -> Array:
        differing = np.zeros((len(p), len(q)))
        for site in range(p.shape[1]):
            differing += p[:, site, None] != q[None, :, site]
        unknown_mean = 1.0
        alikes = alike * np.exp(-differing / length)
        return unknown_mean + linear * (a @ b.T) / p.shape[1] + alikes

    def _cholesky(self, linear: float, alike: float, length: float, noise: float) -> Array:
        f, n = self._features, self._numbers
        kernel = self._kernel(f, f, n, n, linear, alike, length)
        return cholesky(kernel + noise * np.eye(len(f)), lower=True)

    def _likelihood(
        self, values: Array, linear: float, alike: float, length: float, noise: float
    ) -> float:
        factor = self._cholesky(linear, alike, length, noise)
        fit = float(values @ cho_solve((factor, True), values))
        return -fit / 2 - float(np.log(np.diag(factor)).sum())


class Bayes(Searcher):
    """Scores the plans that the process expects to be best, or that may well be."""

    name = "bayes"

    def propose(self, known: Known) -> list[Genome]:
        """First the surrogate's front; then a few by expectation, most by sampling (Thompson)."""
        task = self.task
        singles = {task.space.keep, *task.space.singles()}
        front = Surrogate(task, known).front(_LEVELS) if known.keys() <= singles else ()
        if first := self.unknown(front, known):
            return first
        process = Process(task, known)
        considered = dict.fromkeys(self._considered(known, process))
        plans = [plan for plan in considered if plan not in known]
        if not plans:
            return self.filled((), known)
        means = process.means(plans)
        order = np.argsort(means, kind="stable")[:_SAMPLED]
        promising = [plans[i] for i in order]
        expected = promising[:_EXPECTED]
        return self.filled((*expected, *self._sampled(process, promising, len(known))), known)

    def _considered(self, known: Known, process: Process) -> Iterator[Genome]:
        """Plans on the ways down the process's mean, with their neighbours.

        They begin at the best plans within the limits, at the surrogate's, and at random.
        """
        task = self.task
        surrogate = Surrogate(task, known)
        within = sorted((g for g in known if task.meets(g)), key=lambda g: (known[g], g))
        starts = [*within[:_PARENTS], *islice(surrogate.best(), 1)]
        starts += [task.random(len(known) + i) for i in range(_STRANGERS)]
        seen: set[Genome] = set()
        for plan in starts:
            value = math.inf
            while plan not in seen:
                seen.add(plan)
                near = list(surrogate.neighbours(plan))
                yield from near
                means = process.means(near)
                if not near or means.min() >= value:
                    break
                plan, value = near[int(np.argmin(means))], float(means.min())

    def _sampled(self, process: Process, plans: list[Genome], number: int) -> Iterator[Genome]:
        """The best plan of each of some functions drawn from the process; then the rest."""
        mean, covariance = process.predict(plans)
        chance = np.random.default_rng(mix(self.task.seed, 50, number))
        factor = cholesky(covariance + 1e-6 * np.eye(len(plans)), lower=True)
        for _ in range(2 * self.task.settings.population):
            drawn = mean + factor @ chance.standard_normal(len(plans))
            yield plans[int(np.argmin(drawn))]
        yield from plans
