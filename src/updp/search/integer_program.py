"""The best plan within limits, exactly, by mixed-integer programming (scipy's HiGHS).

One binary variable for each candidate of each site, of which a site takes one at most. What
candidates save adds up, so every limit is linear. The peak of memory is the worst of many moments:
one more variable, no less than each.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from updp.search.space import Genome, Limits, Space

Row = NDArray[np.float64]


class IntegerProgram:
    """The plans of a space as variables: candidates in the order of sites, then the peak."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.options = [option for site in space.sites for option in site.options]
        self.owners = np.array([i for i, site in enumerate(space.sites) for _ in site.options])
        self.places = np.cumsum([0, *(len(site.options) for site in space.sites)])

    def best(self, weights: Sequence[float], limits: Limits) -> Genome | None:
        """The plan of the least sum of `weights`, one per candidate; None: limits allow none."""
        return self._solve(self._row(weights), limits)

    def least(self, unit: str, limits: Limits) -> float | None:
        """What a plan within the limits can come down to in `unit`; None without such a plan."""
        values, whole = self._costs(unit)
        genome = self._solve(values / max(whole, 1), limits)
        return None if genome is None else float(getattr(self.space.cost(genome), unit))

    def nearest(self, genome: Genome, weights: Sequence[float], limits: Limits) -> Genome | None:
        """The plan within the limits that differs at fewest sites; of these, of least weights."""
        if limits.met(self.space.cost(genome)):
            return genome
        differing = np.ones(len(self.options))  # from a site that is kept
        for i, j in enumerate(genome):
            if j:  # keeping it differs by 1, its candidate by 0, another one by 1
                differing[self.places[i] : self.places[i + 1]] = 0
                differing[self.places[i] + j - 1] = -1
        small = np.asarray(weights, dtype=float)
        small = small / (1 + np.abs(small).sum()) / 2
        return self.best(differing + small, limits)

    def features(self, plans: NDArray[np.int64]) -> Row:
        """Genomes (n, sites) as one column per candidate (n, candidates), 1 where it is taken."""
        found = np.zeros((len(plans), len(self.options)))
        rows, sites = np.nonzero(plans)
        found[rows, self.places[sites] + plans[rows, sites] - 1] = 1
        return found

    def met(self, plans: NDArray[np.int64], limits: Limits) -> NDArray[np.bool_]:
        """Which of the genomes (n, sites) are within the limits (n,)."""
        features = self.features(plans)
        met = np.ones(len(plans), dtype=bool)
        if limits.blocks is not None:
            met &= features @ self._blocks == limits.blocks
        for unit, limit in limits.amounts.items():
            values, whole = self._costs(unit)
            costs = whole + features @ values[:-1]
            met &= costs + values[-1] * self._peaks(plans) <= limit * (1 + 1e-9)
        return met

    def _peaks(self, plans: NDArray[np.int64]) -> Row:
        """The peak of each plan's activations, in the unit that the program counts it in."""
        peaks = np.full(len(plans), float(self.space.outside))
        for i, site in enumerate(self.space.sites):
            inside = np.array([site.memory, *(o.memory for o in site.options)], dtype=float)
            peaks = np.maximum(peaks, inside[plans[:, i]])
        return peaks / self._scale

    def _solve(self, value: Row, limits: Limits) -> Genome | None:
        if not self.options:
            return None
        constraints = [*self._one_each, *self._peak, *self._limits(limits)]
        rows, low, high = zip(*constraints, strict=True)
        upper = np.ones(len(value))
        upper[-1] = np.inf
        integral = np.ones(len(value))
        integral[-1] = 0
        result = milp(
            value,
            integrality=integral,
            bounds=Bounds(0, upper),
            constraints=LinearConstraint(np.array(rows), low, high),
        )
        return None if result.x is None else self._genome(result.x[:-1])

    def _row(self, values: Sequence[float] | Row, peak: float = 0) -> Row:
        return np.array([*values, peak], dtype=float)

    @cached_property
    def _scale(self) -> float:
        """Bytes that the peak is counted in, for the solver's tolerances are absolute."""
        return max(1.0, self.space.baseline.memory)

    def _costs(self, unit: str) -> tuple[Row, float]:
        """What each candidate (and the peak) adds to the baseline's cost in `unit`, which is."""
        if unit == "memory":
            freed = [-float(o.bytes) for o in self.options]
            return self._row(freed, self._scale), self.space.weights
        name = {"latency": "ms"}.get(unit, unit)
        saved = [-float(getattr(o, name)) for o in self.options]
        return self._row(saved), float(getattr(self.space.baseline, unit))

    @cached_property
    def _blocks(self) -> Row:
        """1 for a candidate that takes depth away."""
        return np.array([float(option.blocks) for option in self.options])

    @cached_property
    def _one_each(self) -> list[tuple[Row, float, float]]:
        sites = np.flatnonzero(np.diff(self.places))
        return [(self._row((self.owners == i).astype(float)), 0, 1) for i in sites]

    @cached_property
    def _peak(self) -> list[tuple[Row, float, float]]:
        """The peak is no less than the memory at any site, nor than that outside of all."""
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
        found = []
        for start, end in zip(self.places[:-1], self.places[1:], strict=True):
            chosen = np.flatnonzero(x[start:end] > 0.5)
            found.append(int(chosen[0]) + 1 if len(chosen) else 0)
        return tuple(found)
