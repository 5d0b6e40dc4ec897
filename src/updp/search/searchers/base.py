"""The interface of searchers: pure functions from known scores to the plans to score next.

A searcher has no further state, so a search resumes after a kill by asking the same questions, and
any number of workers ask the same ones and share the answers.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from typing import ClassVar

from updp.io.seeds import mix
from updp.recipe import SearchSettings
from updp.search.integer_program import IntegerProgram, Row
from updp.search.space import Genome, Limits, Space
from updp.tasks import CLASSIFICATION, Metric

_PATIENCE = 200  # random plans without a new one before stopping, plus the number known

Known = Mapping[Genome, float]  # scores, lower is better


@dataclass(frozen=True)
class SearchTask:
    """Task of a searcher: find the plan with the best score within the limits.

    `metric` is a further measure of plans, besides the score.
    """

    space: Space
    limits: Limits
    settings: SearchSettings
    seed: int = 0
    metric: Metric = CLASSIFICATION.metric

    @cached_property
    def program(self) -> IntegerProgram:
        """The space as an integer program."""
        return IntegerProgram(self.space)

    @cached_property
    def axis(self) -> str:
        """Unit of cost of the front: the first unit that is limited, else MACs.

        MACs are the default because they do not vary between measurements.
        """
        return next(iter(self.limits.amounts), "macs")

    def cost(self, genome: Genome) -> float:
        """Cost of a plan in the unit `axis`."""
        return float(getattr(self.space.cost(genome), self.axis))

    def meets(self, genome: Genome) -> bool:
        """Whether the plan is within the limits."""
        return self.limits.met(self.space.cost(genome))

    def nearest(self, genome: Genome, weights: Sequence[float] | Row) -> Genome:
        """The plan within the limits that differs at fewest sites; among ties, of least weights."""
        nearest = self.program.nearest(genome, weights, self.limits)
        assert nearest is not None, "limits are checked before a search"
        return nearest

    def random(self, number: int) -> Genome:
        """Random plan number `number`: prune sites in random order until the limits are met."""
        generator = random.Random(mix(self.seed, 40, number))
        sites = self.space.sites
        genome = self.space.keep
        for i in generator.sample(range(len(sites)), len(sites)):
            if self.meets(genome):
                break
            genome = self.space.changed(genome, i, generator.randint(1, len(sites[i].options)))
        return self.nearest(genome, [generator.random() for _ in self.program.options])


class Searcher(ABC):
    """Proposes plans within the task's limits (and some outside, to learn from)."""

    name: ClassVar[str]

    def __init__(self, task: SearchTask) -> None:
        self.task = task

    @classmethod  # noqa: B027, most need no package
    def check_installed(cls) -> None:
        """Raise UserError if a package that the searcher needs is missing."""

    def preliminaries(self) -> list[Genome]:
        """The plans to score before the first proposal: each candidate alone."""
        return [self.task.space.keep, *self.task.space.singles()]

    @abstractmethod
    def propose(self, known: Known) -> list[Genome]:
        """Unknown plans to score next, at most `population`; an empty list ends the search."""

    def unknown(self, plans: Iterable[Genome], known: Known) -> list[Genome]:
        """The first of `plans` that are not known, at most `population`."""
        new = (plan for plan in dict.fromkeys(plans) if plan not in known)
        return list(islice(new, self.task.settings.population))

    def filled(self, plans: Iterable[Genome], known: Known) -> list[Genome]:
        """The unknown plans, filled up to `population` with random ones.

        The list is shorter only if almost no unknown plan is left.
        """
        found = dict.fromkeys(self.unknown(plans, known))
        numbers, stale, patience = count(), 0, len(known) + _PATIENCE
        while len(found) < self.task.settings.population and stale < patience:
            plan = self.task.random(next(numbers))
            stale = stale + 1 if plan in known or plan in found else 0
            if not stale:
                found[plan] = None
        return list(found)
