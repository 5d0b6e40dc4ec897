"""The best plan within limits, exactly, by mixed-integer linear programming (scipy's HiGHS).

There is one binary variable for each candidate of each site; a site uses at most one candidate.
Savings of candidates add up, so every limit is linear. Peak memory is the maximum over many
moments: one further variable, bounded below by each of them.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from updp.search.space import Genome, Limits, Space

Row = NDArray[np.float64]  # one value per candidate, in the order of sites, then one for the peak


class IntegerProgram:
    """The plans of a space as an integer program."""

    def __init__(self, space: Space) -> None:
        counts = np.array([len(site.options) for site in space.sites], dtype=int)
        self.space = space
        self.options = [option for site in space.sites for option in site.options]
        self.owners = np.repeat(np.arange(len(counts)), counts)  # each option's site
        self.starts = np.cumsum([0, *counts])  # each site's first option, and the end

    def best(self, weights: Sequence[float] | Row, limits: Limits) -> Genome | None:
        """The plan with the least sum of `weights`, one per candidate; None if none is within."""
        return self._solve(self._row(weights), limits)

    def least(self, unit: str, limits: Limits) -> float | None:
        """The least cost in `unit` of a plan within the limits; None if none is within."""
        values, whole = self._costs(unit)
        genome = self._solve(values / max(whole, 1), limits)
        return None if genome is None else float(getattr(self.space.cost(genome), unit))

    def nearest(
        self, genome: Genome, weights: Sequence[float] | Row, limits: Limits
    ) -> Genome | None:
        """The plan within the limits that differs at fewest sites; among ties, of least weights."""
        if limits.met(self.space.cost(genome)):
            return genome
        differing = np.ones(len(self.options))  # from a kept site
        for i, j in enumerate(genome):
            if j:  # keeping the site differs by 1, the same candidate by 0, another one by 1
                differing[self.starts[i] : self.starts[i + 1]] = 0
                differing[self.starts[i] + j - 1] = -1
        # Scaled so that they sum to less than one site: weights only decide between ties.
        small = np.asarray(weights, dtype=float)
        small = small / (1 + np.abs(small).sum()) / 2
        return self.best(differing + small, limits)

    def features(self, plans: NDArray[np.int64]) -> Row:
        """One-hot encoding (n, candidates) of genomes (n, sites)."""
        features = np.zeros((len(plans), len(self.options)))
        rows, sites = np.nonzero(plans)
        features[rows, self.starts[sites] + plans[rows, sites] - 1] = 1
        return features

    def sums(self, plans: NDArray[np.int64], weights: Row) -> Row:
        """Sums (n,) of the weights (candidates,) over the candidates of genomes (n, sites)."""
        total = np.zeros(len(plans))
        for i, (first, end) in enumerate(pairwise(self.starts)):
            total += np.append(0.0, weights[first:end])[plans[:, i]]
        return total

    def met(self, plans: NDArray[np.int64], limits: Limits) -> NDArray[np.bool_]:
        """Which of the genomes (n, sites) are within the limits (n,)."""
        met = np.ones(len(plans), dtype=bool)
        if limits.blocks is not None:
            met &= self.sums(plans, self._blocks) == limits.blocks
        for unit, limit in limits.amounts.items():
            values, whole = self._costs(unit)
            costs = whole + self.sums(plans, values[:-1])
            met &= costs + values[-1] * self._peaks(plans) <= limit * (1 + 1e-9)
        return met

    def _peaks(self, plans: NDArray[np.int64]) -> Row:
        """Peak memory of each plan's activations, in multiples of `_scale`."""
        peaks = np.full(len(plans), float(self.space.outside))
        for i, site in enumerate(self.space.sites):
            inside = np.array([site.memory, *(o.memory for o in site.options)], dtype=float)
            peaks = np.maximum(peaks, inside[plans[:, i]])
        return peaks / self._scale

    def _solve(self, objective: Row, limits: Limits) -> Genome | None:
        if not self.options:
            return None
        constraints = [*self._one_each, *self._peak, *self._limits(limits)]
        rows, low, high = zip(*constraints, strict=True)
        result = milp(
            objective,
            integrality=self._row(np.ones(len(self.options)), 0),
            bounds=Bounds(0, self._row(np.ones(len(self.options)), np.inf)),
            constraints=LinearConstraint(np.array(rows), low, high),
        )
        return None if result.x is None else self._genome(result.x[:-1])

    def _row(self, values: Sequence[float] | Row, peak: float = 0) -> Row:
        return np.array([*values, peak], dtype=float)

    @cached_property
    def _scale(self) -> float:
        """The unit of the peak in bytes; needed because the solver's tolerances are absolute."""
        return max(1.0, self.space.baseline.memory)

    def _costs(self, unit: str) -> tuple[Row, float]:
        """Cost that each candidate, and the peak, adds in `unit`; and the baseline's cost.

        For memory the baseline's cost covers the weights alone.
        """
        if unit == "memory":
            freed = [-float(o.saved_bytes) for o in self.options]
            return self._row(freed, self._scale), self.space.weights
        name = {"latency": "ms"}.get(unit, unit)
        saved = [-float(getattr(o, f"saved_{name}")) for o in self.options]
        return self._row(saved), float(getattr(self.space.baseline, unit))

    @cached_property
    def _blocks(self) -> Row:
        """1 for each candidate that reduces depth, else 0."""
        return np.array([float(option.blocks) for option in self.options])

    @cached_property
    def _one_each(self) -> list[tuple[Row, float, float]]:
        """Constraints: each site uses at most one candidate."""
        return [(self._row((self.owners == i).astype(float)), 0, 1) for i in np.unique(self.owners)]

    @cached_property
    def _peak(self) -> list[tuple[Row, float, float]]:
        """Constraints: the peak is at least the memory at each site and outside of all sites."""
        rows = [(self._row(np.zeros(len(self.options)), 1), self.space.outside / self._scale)]
        for i, site in enumerate(self.space.sites):
            more = np.array([float(o.memory - site.memory) for o in self.options])
            inside = np.where(self.owners == i, more, 0)
            rows.append((self._row(-inside / self._scale, 1), site.memory / self._scale))
        return [(row, low, np.inf) for row, low in rows]

    def _limits(self, limits: Limits) -> list[tuple[Row, float, float]]:
        rows = []
        if limits.blocks is not None:
            rows.append((self._row(self._blocks), float(limits.blocks), float(limits.blocks)))
        for unit, limit in limits.amounts.items():
            values, whole = self._costs(unit)
            scale = max(whole, 1)
            rows.append((values / scale, -np.inf, (limit - whole) / scale))
        return rows

    def _genome(self, x: Row) -> Genome:
        """The plan for the solver's binary variables."""
        genome = [0] * len(self.space.sites)
        for option in np.flatnonzero(x > 0.5):
            site = self.owners[option]
            genome[site] = int(option - self.starts[site]) + 1
        return tuple(genome)
