"""The space of plans: the options of each site, and the cost of every plan.

A genome is a plan in numbers: for each site 0 (`keep`) or the number of its candidate, from 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

Genome = tuple[int, ...]


@dataclass(frozen=True)
class Option:
    """A candidate of a site, with its savings relative to the baseline."""

    label: str
    saved_ms: float  # for a batch
    saved_macs: int  # multiply-accumulates for an image
    saved_parameters: int = 0
    saved_bytes: int = 0  # of weights
    memory: int = 0  # bytes of activations alive at the worst moment inside the site
    noise: float = 0.0  # half of the interquartile range of `saved_ms`
    blocks: int = 1  # 1 if the candidate reduces depth, else 0


@dataclass(frozen=True)
class SiteOptions:
    """A site with its candidates; `memory` is as in `Option`, for the baseline's form."""

    name: str
    options: tuple[Option, ...]
    memory: int = 0


@dataclass(frozen=True)
class Cost:
    """Cost of a plan."""

    latency: float  # ms for a batch
    noise: float  # half of the interquartile range of `latency`
    macs: float  # multiply-accumulates for an image
    parameters: float
    memory: float  # bytes at the peak
    blocks: int  # number of pruned blocks


@dataclass(frozen=True)
class Limits:
    """Limits of a plan: upper bounds by unit, and the exact number of pruned blocks."""

    amounts: Mapping[str, float] = field(default_factory=dict)
    blocks: int | None = None

    def met(self, cost: Cost) -> bool:
        """Whether a plan of this cost is within the limits (up to rounding)."""
        return self.blocks in (None, cost.blocks) and all(
            getattr(cost, unit) <= limit * (1 + 1e-9) for unit, limit in self.amounts.items()
        )

    def without(self, unit: str) -> Limits:
        """The limits without the one on `unit`."""
        return replace(self, amounts={u: a for u, a in self.amounts.items() if u != unit})


@dataclass(frozen=True)
class Space:
    """The sites with their candidates, in the order of the model, and the baseline's cost."""

    sites: tuple[SiteOptions, ...]
    ms: float
    macs: float
    parameters: float = 0
    weights: float = 0  # bytes of parameters and buffers
    outside: float = 0  # bytes of activations at the worst moment outside of all sites

    @property
    def keep(self) -> Genome:
        """The plan that prunes nothing."""
        return (0,) * len(self.sites)

    @property
    def size(self) -> int:
        """The number of plans."""
        return math.prod(1 + len(site.options) for site in self.sites)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(site.name for site in self.sites)

    @cached_property
    def baseline(self) -> Cost:
        """Cost of the plan that prunes nothing."""
        return self.cost(self.keep)

    def singles(self) -> list[Genome]:
        """The plans that prune exactly one site."""
        return [
            self.changed(self.keep, i, j)
            for i, site in enumerate(self.sites)
            for j in range(1, len(site.options) + 1)
        ]

    def changed(self, genome: Genome, site: int, choice: int) -> Genome:
        """The genome with the choice of one site changed."""
        return (*genome[:site], choice, *genome[site + 1 :])

    def cost(self, genome: Genome) -> Cost:
        """Cost of a plan, from the savings of its candidates.

        Savings add up, and their noise adds up in squares. Memory is that of the weights plus the
        peak of activations: the largest inside of any site and outside of all.
        """
        pairs = list(zip(self.sites, genome, strict=True))
        options = [site.options[j - 1] for site, j in pairs if j]
        inside = [site.options[j - 1].memory if j else site.memory for site, j in pairs]
        return Cost(
            self.ms - sum(o.saved_ms for o in options),
            math.sqrt(sum(o.noise**2 for o in options)),
            self.macs - sum(o.saved_macs for o in options),
            self.parameters - sum(o.saved_parameters for o in options),
            self.weights - sum(o.saved_bytes for o in options) + max([self.outside, *inside]),
            sum(o.blocks for o in options),
        )

    def scaled(self, factor: float) -> Space:
        """The space with the latency savings of all candidates multiplied by `factor`."""
        return replace(
            self,
            sites=tuple(
                replace(
                    site,
                    options=tuple(
                        replace(o, saved_ms=factor * o.saved_ms, noise=factor * o.noise)
                        for o in site.options
                    ),
                )
                for site in self.sites
            ),
        )

    def choices(self, genome: Genome) -> dict[str, str]:
        """Labels of the chosen candidates, by pruned site."""
        return {
            s.name: s.options[j - 1].label for s, j in zip(self.sites, genome, strict=True) if j
        }

    def genome(self, choices: Mapping[str, str]) -> Genome:
        """The inverse of `choices`."""
        labels = [[None, *(option.label for option in site.options)] for site in self.sites]
        return tuple(
            known.index(choices.get(name)) for name, known in zip(self.names, labels, strict=True)
        )
