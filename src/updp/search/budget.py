"""From an order of sites to a plan within the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from updp.errors import UserError
from updp.recipe import Budget


@dataclass(frozen=True)
class Cost:
    """What one site saves when it is pruned, for the unit that the budget counts in."""

    label: str
    ms: float
    macs: int


@dataclass(frozen=True)
class Costs:
    """The baseline's latency (ms) and MACs, and what each site saves of them."""

    ms: float
    macs: int
    sites: Mapping[str, Cost]

    def latency(self, names: Sequence[str]) -> float:
        """Predicted ms of the network with the named sites pruned."""
        return self.ms - sum(self.sites[n].ms for n in names)

    def check(self, budget: Budget) -> None:
        """Raise UserError, with the nearest reachable value, for a budget out of reach."""
        count = len(self.sites)
        if budget.blocks is not None and budget.blocks > count:
            raise UserError(
                f"budget blocks={budget.blocks} is more than the {count} sites that can be "
                f"pruned: ask for blocks={count} at most (`updp inspect` lists them)"
            )
        if not self._reached(tuple(self.sites), budget):
            unit = "latency" if budget.latency else "macs"
            nearest = math.ceil(1000 * self._share(tuple(self.sites), unit)) / 1000
            raise UserError(
                f"budget {budget} is out of reach: pruning all {count} sites comes down to "
                f"{unit}={nearest:.3f}"
            )

    def cost(self, names: Sequence[str], budget: Budget) -> float:
        """Share of the baseline's latency, or of its MACs unless latency is the budget.

        MACs do not vary from clock to clock, so that the search can be repeated.
        """
        return self._share(names, "macs" if budget.latency is None else "latency")

    def plans(self, budget: Budget) -> int:
        """How many plans there can be within the budget, at most."""
        count = len(self.sites)
        return 2**count if budget.blocks is None else math.comb(count, budget.blocks)

    def fill(self, order: Sequence[str], budget: Budget) -> tuple[str, ...]:
        """Prune sites in the given order until the budget is met; names in the model's order."""
        chosen: list[str] = []
        for name in order:
            if self._reached(chosen, budget):
                break
            chosen.append(name)
        return tuple(name for name in self.sites if name in set(chosen))

    def _reached(self, names: Sequence[str], budget: Budget) -> bool:
        if budget.blocks is not None:
            return len(names) >= budget.blocks
        if budget.latency is not None:
            return self._share(names, "latency") <= budget.latency
        assert budget.macs is not None
        return self._share(names, "macs") <= budget.macs

    def _share(self, names: Sequence[str], unit: str) -> float:
        if unit == "latency":
            return self.latency(names) / self.ms
        return 1 - sum(self.sites[n].macs for n in names) / self.macs
