"""Rehearse the search: score a few plans of each kind, as the search would."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TypeVar

from updp.io.seeds import mix
from updp.measure import Meter, Work
from updp.search import SEARCHERS, FittedScorer, ScoreFile, Scorer, SearchTask, score_missing
from updp.search.searchers.base import Known, Searcher
from updp.search.searchers.refined import Refined
from updp.search.space import Genome
from updp.stages import search
from updp.stages.context import Context
from updp.supernet.timing import time_plans

_ALONE = 6  # number of single candidates to score, besides the baseline
_PLANS = 4  # number of proposed plans to score
_REFINED = 3  # number of single candidates to fit, repair and score, and of plans
T = TypeVar("T")


class SearchRehearsal:
    """Measures a search and discards its scores.

    `growth` is the memory in bytes of activations that the whole search keeps beyond `measure`'s.
    """

    def __init__(self, context: Context, meter: Meter) -> None:
        """The root of `context` must be a temporary directory with the survey of the sites."""
        self.context, self.meter, self.growth = context, meter, 0

    @cached_property
    def task(self) -> SearchTask:
        """See `stages.search.make_task`."""
        return search.make_task(self.context)

    @cached_property
    def _scorer(self) -> Scorer:
        context = self.context
        return Scorer(context.net, context.baseline, context.feed, context.recipe)

    def measure(self, choices: Mapping[str, str]) -> list[Work]:
        """Score a few plans of each kind; `choices` is a plan to time."""
        context, task, meter = self.context, self.task, self.meter
        refines, space = context.recipe.refines, task.space
        searcher = SEARCHERS[task.settings.searcher](task)
        first = searcher.preliminaries()
        wanted = max(0, min(task.settings.evaluations, space.size - len(first)))
        singles = [space.keep, *space.singles()]
        alone = singles if refines else first
        some = [*alone[:1], *evenly(alone[1:], _ALONE)]
        works = [meter.sample("single candidates", lambda: self._score(some), len(alone))]
        # The plans known half-way; their scores do not affect how long it takes to propose plans.
        half = [task.random(number) for number in range(wanted // 2)]
        proposing, plans = self._propose(searcher, [*first, *half], wanted)
        refining = self._refine(Refined(task, _assumed(task, singles))) if refines else []
        again = sum(work.steps for work in refining)  # also scored like the others
        score = partial(self._score, plans[:_PLANS])
        works += [proposing, meter.sample("plans", score, wanted + again), *refining]
        self.growth = self._scorer.cache.growth(len(some) + _PLANS, len(alone) + wanted)
        return [*works, self._time_plans(choices)]

    def _propose(
        self, searcher: Searcher, known: Sequence[Genome], wanted: int
    ) -> tuple[Work, list[Genome]]:
        """Work of all rounds of proposals, and the plans of one round."""
        plans: list[Genome] = []

        def propose() -> None:
            plans.extend(searcher.propose(_assumed(searcher.task, known)))
            self.meter.advance()

        size = searcher.task.settings.population
        work = self.meter.sample("proposals", propose, math.ceil(wanted / size))
        return work, plans

    def _score(self, plans: Sequence[Genome]) -> None:
        file = ScoreFile(self.context.folder("search") / search.SCORES)
        score_missing(plans, self.task, self._scorer, file, self.meter)

    def _refine(self, searcher: Refined) -> list[Work]:
        """Work of plans that are fitted and repaired: single candidates, and proposals."""
        context, task = self.context, self.task
        first = searcher.preliminaries()
        wanted = task.settings.refined
        if "latency" in task.limits.amounts:  # more are scored once the best were timed
            wanted += wanted // 2
        left = max(0, min(wanted, task.space.size) - len(first))
        plans = dict.fromkeys(task.random(number) for number in range(_REFINED))

        def score(plans: Sequence[Genome]) -> None:
            judge = FittedScorer(context.net, context.baseline, context.feed, context.recipe)
            file = ScoreFile(context.folder("search") / search.FITTED)
            score_missing(plans, task, judge, file, self.meter)

        return [
            self.meter.sample(
                "refined candidates", lambda: score(evenly(first, _REFINED)), len(first)
            ),
            self.meter.sample("refined plans", lambda: score([*plans]), left),
        ]

    def _time_plans(self, choices: Mapping[str, str]) -> Work:
        context, measure = self.context, self.context.recipe.measure
        plans = [choices] * min(self.task.settings.timed, self.task.space.size)
        x = context.example(measure.batch_size)
        net = context.net.eval()

        def run() -> None:
            time_plans(context.baseline, net, plans, x, measure, self.meter.advance)

        # The best plans are timed before further ones are refined, and at the end.
        times = 2 if "latency" in self.task.limits.amounts else 1
        return self.meter.time("rounds of timing", run, times * measure.rounds)


def evenly(values: Sequence[T], count: int) -> list[T]:
    """At most `count` of the values, evenly from beginning to end."""
    count = min(count, len(values))
    return [values[(2 * i + 1) * len(values) // (2 * count)] for i in range(count)]


def _assumed(task: SearchTask, plans: Sequence[Genome]) -> Known:
    """Substitutes for scores: the share of MACs that a plan saves, with some noise."""
    whole = task.space.baseline.macs
    return {
        plan: (1 - task.space.cost(plan).macs / whole) * (0.5 + mix(*plan) / 2**63)
        for plan in plans
    }
