"""The space of plans: what each site may become, and what every plan costs.

A genome says a plan in numbers: for each site 0 (`keep`) or the number of its candidate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

Genome = tuple[int, ...]


@dataclass(frozen=True)
class Option:
    """A candidate of a site: what it saves of the baseline's cost, and what it needs itself.

    `ms` is for a batch, `noise` half of its interquartile range; `macs` for an image; `memory` the
    bytes of activations alive at the site's worst moment, `parameters` and `bytes` of weights.
    `blocks` is 1 where depth is taken away, else 0.
    """

    label: str
    ms: float
    macs: int
    parameters: int = 0
    bytes: int = 0
    memory: int = 0
    noise: float = 0.0
    blocks: int = 1


@dataclass(frozen=True)
class Choice:
    """A site with its candidates; `memory` is as in `Option`, for the baseline's form."""

    name: str
    options: tuple[Option, ...]
    memory: int = 0


@dataclass(frozen=True)
class Cost:
    """Of a plan: ms and its noise, MACs, parameters, bytes at the peak, sites pruned in depth."""

    latency: float
    noise: float
    macs: float
    parameters: float
    memory: float
    blocks: int


@dataclass(frozen=True)
class Limits:
    """What a plan must keep to: amounts by unit at most, and exactly so many blocks in depth."""

    amounts: Mapping[str, float] = field(default_factory=dict)
    blocks: int | None = None

    def met(self, cost: Cost) -> bool:
        """Whether a plan of this cost keeps to them (up to rounding)."""
        return self.blocks in (None, cost.blocks) and all(
            getattr(cost, unit) <= limit * (1 + 1e-9) for unit, limit in self.amounts.items()
        )

    def without(self, unit: str) -> Limits:
        """All but one."""
        return replace(self, amounts={u: a for u, a in self.amounts.items() if u != unit})


@dataclass(frozen=True)
class Space:
    """The baseline's cost and every site's choices, in the order of the model.

    `weights` are bytes of parameters and buffers, `outside` the bytes of activations at the worst
    moment outside of all sites.
    """

    sites: tuple[Choice, ...]
    ms: float
    macs: float
    parameters: float = 0
    weights: float = 0
    outside: float = 0

    @property
    def keep(self) -> Genome:
        """The plan that prunes nothing."""
        return (0,) * len(self.sites)

    @property
    def size(self) -> int:
        """How many plans there are."""
        return math.prod(1 + len(site.options) for site in self.sites)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the sites."""
        return tuple(site.name for site in self.sites)

    @cached_property
    def baseline(self) -> Cost:
        """Of the plan that prunes nothing."""
        return self.cost(self.keep)

    def singles(self) -> list[Genome]:
        """Every candidate of every site alone."""
        return [
            self.changed(self.keep, i, j)
            for i, site in enumerate(self.sites)
            for j in range(1, len(site.options) + 1)
        ]

    def changed(self, genome: Genome, site: int, choice: int) -> Genome:
        """The genome with one site's choice changed."""
        return (*genome[:site], choice, *genome[site + 1 :])

    def chosen(self, genome: Genome) -> list[Option]:
        """The candidates of the pruned sites."""
        return [s.options[j - 1] for s, j in zip(self.sites, genome, strict=True) if j]

    def cost(self, genome: Genome) -> Cost:
        """The plan's cost: what its candidates save adds up, peaks do not.

        Memory is the weights' and the worst of the moments inside each site and outside of all.
        """
        options = self.chosen(genome)
        inside = [
            s.options[j - 1].memory if j else s.memory
            for s, j in zip(self.sites, genome, strict=True)
        ]
        return Cost(
            self.ms - sum(o.ms for o in options),
            math.sqrt(sum(o.noise**2 for o in options)),
            self.macs - sum(o.macs for o in options),
            self.parameters - sum(o.parameters for o in options),
            self.weights - sum(o.bytes for o in options) + max([self.outside, *inside]),
            sum(o.blocks for o in options),
        )

    def choices(self, genome: Genome) -> dict[str, str]:
        """Labels of the pruned sites' candidates by site."""
        return {
            s.name: s.options[j - 1].label for s, j in zip(self.sites, genome, strict=True) if j
        }

    def genome(self, choices: Mapping[str, str]) -> Genome:
        """The inverse of `choices`."""
        return tuple(_number(site, choices.get(site.name)) for site in self.sites)


def _number(site: Choice, label: str | None) -> int:
    labels: Sequence[str] = [option.label for option in site.options]
    return 0 if label is None else 1 + labels.index(label)
