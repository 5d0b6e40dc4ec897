"""Bayesian optimisation over plans, with a Gaussian process that models interactions.

The damage of candidates does not simply add up: it depends on what else is pruned. The process
models the logarithm of the score with two kernels: a linear one on candidates (additive damage) and
an exponential one on the number of sites at which two plans differ (similar plans score alike).
Hyperparameters are those of the highest likelihood on a small grid. Rasmussen & Williams, *Gaussian
Processes for Machine Learning*, 2006, sections 2.2 and 5.4.1.
"""

import math
from collections.abc import Iterator
from itertools import islice, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky

from updp.io.seeds import mix
from updp.search.searchers.base import Known, Searcher
from updp.search.searchers.surrogate import Surrogate, ranked
from updp.search.space import Genome

_PARENTS = 4  # number of best known plans to start descents from
_STRANGERS = 2  # number of random plans to start descents from
_EXPECTED = 2  # number of plans proposed by expectation; the others are proposed by sampling
_SAMPLED = 1000  # number of most promising plans, on which the process is sampled
_PART = 4096  # number of plans whose means are computed at once: there may be a million
Array = NDArray[np.float64]
Genomes = NDArray[np.int64]  # (n, sites)


class Kernel(NamedTuple):
    """Covariance of log scores: the sum of a constant, a linear and an exponential kernel."""

    linear: float  # variance of the linear kernel
    alike: float  # variance of the exponential kernel
    length: float  # length scale of the exponential kernel, in sites
    noise: float  # variance of observations

    def __call__(self, a: Genomes, b: Genomes) -> Array:
        """Covariance (n, m) of n plans with m others."""
        sites = a.shape[1]
        differing, shared = np.zeros((len(a), len(b))), np.zeros((len(a), len(b)))
        for site in range(sites):
            equal = a[:, site, None] == b[None, :, site]
            differing += ~equal
            shared += equal & (a[:, site, None] > 0)  # a candidate that both have
        unknown_mean = 1.0
        linear: Array = self.linear * shared / sites
        return unknown_mean + linear + self.alike * np.exp(-differing / self.length)

    def factor(self, plans: Genomes) -> Array:
        """Lower Cholesky factor (n, n) of the covariance of n observations."""
        noise = self.noise * np.eye(len(plans))
        factor: Array = cholesky(self(plans, plans) + noise, lower=True)
        return factor

    def likelihood(self, plans: Genomes, values: Array) -> float:
        """Log marginal likelihood of the observations `values` (n,), up to a constant."""
        factor = self.factor(plans)
        fit = float(values @ cho_solve((factor, True), values))
        return -fit / 2 - float(np.log(np.diag(factor)).sum())


class Process:
    """A Gaussian process on the log scores of plans."""

    def __init__(self, known: Known) -> None:
        plans = [g for g in known if math.isfinite(known[g])]
        scores = np.array([known[g] for g in plans])
        logs = np.log(np.maximum(scores, 1e-6 * scores.max(initial=1e-12)))
        values = (logs - float(logs.mean())) / (float(logs.std()) or 1.0)
        self._known = _genomes(plans)
        grid = product((0.3, 1.0, 3.0), (0.3, 1.0), (2.0, 4.0, 8.0, 16.0), (1e-3, 1e-2))
        kernels = (Kernel(*hyperparameters) for hyperparameters in grid)
        self.kernel = max(kernels, key=lambda kernel: kernel.likelihood(self._known, values))
        self._factor = self.kernel.factor(self._known)
        self._solved = cho_solve((self._factor, True), values)

    def predict(self, plans: list[Genome]) -> tuple[Array, Array]:
        """Mean (n,) and covariance (n, n) of the standardised log scores."""
        new = _genomes(plans)
        across = self.kernel(new, self._known)
        explained = across @ cho_solve((self._factor, True), across.T)
        return across @ self._solved, self.kernel(new, new) - explained

    def means(self, plans: list[Genome]) -> Array:
        """Only the mean (n,), which is cheap for many plans."""
        genomes = _genomes(plans)
        parts = (genomes[i : i + _PART] for i in range(0, len(plans), _PART))
        return np.concatenate([self.kernel(part, self._known) @ self._solved for part in parts])


def _genomes(plans: list[Genome]) -> Genomes:
    return np.array(plans, dtype=np.int64).reshape(len(plans), -1)


class Bayes(Searcher):
    """Proposes the plans with the best expected scores, and others that may be as good."""

    name = "bayes"

    def propose(self, known: Known) -> list[Genome]:
        """First the surrogate's front; then a few plans by mean, most by Thompson sampling."""
        opening = Surrogate(self.task, known).opening(known)
        if first := self.unknown(opening, known):
            return first
        process = Process(known)
        considered = dict(self._considered(known, process))
        if not considered:
            return self.filled((), known)
        plans, means = [*considered], np.array([*considered.values()])
        promising = [plans[i] for i in np.argsort(means, kind="stable")[:_SAMPLED]]
        sampled = self._sampled(process, promising, len(known))
        return self.filled((*promising[:_EXPECTED], *sampled), known)

    def _considered(self, known: Known, process: Process) -> Iterator[tuple[Genome, float]]:
        """Unknown plans near the descents of the process's mean, with their means.

        Of each plan's neighbours on the way only the best `_SAMPLED` are returned: there may be
        a hundred thousand. The descents begin at the best plans within the limits, at the
        surrogate's best, and at random ones.
        """
        task = self.task
        surrogate = Surrogate(task, known)
        starts = [*ranked(task, known)[:_PARENTS], *islice(surrogate.best(), 1)]
        starts += [task.random(len(known) + i) for i in range(_STRANGERS)]
        seen: set[Genome] = set()
        for plan in starts:
            value = math.inf
            while plan not in seen:
                seen.add(plan)
                near = list(surrogate.neighbours(plan))
                if not near:  # it is the only plan within the limits
                    break
                means = process.means(near)
                order = (int(i) for i in np.argsort(means, kind="stable"))
                new = ((near[i], float(means[i])) for i in order if near[i] not in known)
                yield from islice(new, _SAMPLED)
                if means.min() >= value:
                    break
                plan, value = near[int(np.argmin(means))], float(means.min())

    def _sampled(self, process: Process, plans: list[Genome], number: int) -> Iterator[Genome]:
        """The best plan for each of several functions drawn from the process; then all plans."""
        mean, covariance = process.predict(plans)
        generator = np.random.default_rng(mix(self.task.seed, 50, number))
        # Rounding may leave the covariance without a Cholesky factor.
        factor = cholesky(covariance + 1e-6 * np.eye(len(plans)), lower=True)
        for _ in range(2 * self.task.settings.population):
            drawn = mean + factor @ generator.standard_normal(len(plans))
            yield plans[int(np.argmin(drawn))]
        yield from plans
