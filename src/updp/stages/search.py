"""How stage 2 comes to its plan: scores, scores after fit and repair, the clock, a choice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from updp import search
from updp.data.feed import Feed
from updp.io.progress import Progress
from updp.io.tracking import Board
from updp.recipe import Recipe
from updp.run.curves import drawn
from updp.search import FittedScorer, Scorer, Store, Task
from updp.search.outcome import Known, SearchResult, best, conclude
from updp.supernet import Supernet
from updp.supernet.timing import time_plans


@dataclass
class Choosing:
    """The parts of one search: `net` has the supernet's weights, `made_from` tells it from others.

    `shape` is an image's (C, H, W). What was scored is kept in a store in `folder`.
    """

    task: Task
    net: Supernet
    baseline: nn.Module
    feed: Feed
    shape: tuple[int, ...]
    recipe: Recipe
    made_from: bytes
    folder: Path
    progress: Progress
    board: Board

    def score(self) -> tuple[Known, Known]:
        """Score plans, beside other workers if there are any, until there are enough.

        The second scores are those after fit and repair; there are none where stage 3 does not fit.
        """
        task = self.task
        parts = self.net, self.baseline, self.feed, self.recipe
        scorer = Scorer(*parts)
        with self._store("") as store:
            with drawn(self.board.curves("search")) as show:
                known = search.search(task, scorer, store, self.progress, show)
            if not self.recipe.refines:
                return known, {}
            space = task.space  # not every searcher asks for these
            alone = [space.keep, *space.singles()]
            known |= search.complete(alone, task, scorer, store, self.progress)
            judge = FittedScorer(*parts)
            with self._store("fitted") as other, drawn(self.board.curves("refined")) as show:
                refined = search.refine(task, known, judge, other, self.progress, show)
            return known | search.complete(refined, task, scorer, store, self.progress), refined

    def outcome(self) -> SearchResult:
        """Score plans, time the best end to end, and choose."""
        known, refined = self.score()
        plans, measure = best(known, refined, self.task), self.recipe.measure
        self.progress.begin("search: timing the best plans", measure.rounds)
        x = torch.randn(measure.batch_size, *self.shape, device=self.feed.device)
        choices = [self.task.space.choices(plan) for plan in plans]
        times = time_plans(
            self.baseline, self.net.eval(), choices, x, measure, self.progress.advance
        )
        assert self.recipe.budget is not None
        measured = dict(zip(plans, times, strict=True))
        outcome = conclude(known, refined, self.task, self.recipe.budget, measured)
        chosen = outcome.plan
        top1 = chosen.top1 if chosen.fitted_top1 is None else chosen.fitted_top1
        self.progress.say(
            f"search: {len(known)} plans scored, {len(refined)} fitted and repaired; the chosen "
            f"one has {top1:.2f} % of held-out images right and prunes {', '.join(chosen.choices)}"
        )
        return outcome

    def _store(self, kind: str) -> Store:
        study = hashlib.sha256(self.made_from + kind.encode()).hexdigest()
        return Store.in_folder(self.folder, study, self.recipe.search.storage)
