"""What a searcher is: a pure function from the scores known so far to the plans to score next.

Nothing else is remembered, so a search continues after a kill by asking the same questions again,
and any number of workers ask the same ones and share the answers.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from typing import ClassVar

from updp.io.seeds import mix
from updp.recipe import SearchSettings
from updp.search.integer_program import IntegerProgram
from updp.search.limits import axis_of
from updp.search.space import Genome, Limits, Space

_PATIENCE = 200  # known plans in a row, beside as many as are known at all

Known = Mapping[Genome, float]  # scores, lower is better


@dataclass(frozen=True)
class Task:
    """What is searched for: the best score within the limits."""

    space: Space
    limits: Limits
    settings: SearchSettings
    seed: int = 0

    @cached_property
    def program(self) -> IntegerProgram:
        """The space as an integer program."""
        return IntegerProgram(self.space)

    @cached_property
    def axis(self) -> str:
        """The unit of cost that fronts are drawn over."""
        return axis_of(self.limits)

    def meets(self, genome: Genome) -> bool:
        """Whether the plan keeps to the limits."""
        return self.limits.met(self.space.cost(genome))

    def random(self, number: int) -> Genome:
        """A plan within the limits: sites at random, to random candidates, until they are met."""
        chance = random.Random(mix(self.seed, 40, number))
        sites = self.space.sites
        genome = self.space.keep
        for i in chance.sample(range(len(sites)), len(sites)):
            if self.meets(genome):
                break
            genome = self.space.changed(genome, i, chance.randint(1, len(sites[i].options)))
        weights = [chance.random() for _ in self.program.options]
        nearest = self.program.nearest(genome, weights, self.limits)
        assert nearest is not None, "limits are checked before a search"
        return nearest


class Searcher(ABC):
    """Proposes plans that keep to the task's limits (and, to learn from, some that do not)."""

    name: ClassVar[str]
    learns_from_singles: ClassVar[bool] = True

    def __init__(self, task: Task) -> None:
        self.task = task

    @classmethod  # noqa: B027, most need no package
    def check_installed(cls) -> None:
        """Raises UserError where a package that it needs is missing."""

    def preliminaries(self) -> list[Genome]:
        """What is to be scored before the first proposal."""
        space = self.task.space
        return [space.keep, *space.singles()] if self.learns_from_singles else []

    @abstractmethod
    def propose(self, known: Known) -> list[Genome]:
        """Plans that are not known, at most `population`; none when there is nothing to ask."""

    def unknown(self, plans: Iterable[Genome], known: Known) -> list[Genome]:
        """The first of `plans` that are not known, as many as are proposed at once."""
        new = (plan for plan in dict.fromkeys(plans) if plan not in known)
        return list(islice(new, self.task.settings.population))

    def filled(self, plans: Iterable[Genome], known: Known) -> list[Genome]:
        """The same, and plans at random in place of what is missing.

        Fewer only where nothing else seems to be left.
        """
        found = dict.fromkeys(self.unknown(plans, known))
        stale, patience = 0, len(known) + _PATIENCE
        for number in count():
            if len(found) == self.task.settings.population or stale == patience:
                return list(found)
            plan = self.task.random(number)
            stale = stale + 1 if plan in known or plan in found else 0
            if not stale:
                found[plan] = None
        raise AssertionError("a count has no end")
