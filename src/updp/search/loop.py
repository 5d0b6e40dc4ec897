"""The search loop: ask the searcher, score what it proposes, tell it, until there are enough plans.

Any number of processes run this loop on one store. Each asks the same questions, scores those
plans of a round that nobody has claimed yet, and goes on when all of the round are scored. So the
outcome depends neither on the number of processes nor on when any of them was killed.
"""

import math
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from updp.io.progress import Progress
from updp.search.front import certainly_dominated
from updp.search.score import Hopeless, Score, measure_of, never
from updp.search.searchers import SEARCHERS, Task
from updp.search.searchers.base import Searcher
from updp.search.searchers.refined import Refined
from updp.search.space import Genome
from updp.search.store import Evaluated, Scores, Store

Judge = Callable[[Mapping[str, str], Hopeless], Score]
# Called with a plan that was scored, and the best so far within the limits.
Show = Callable[[Evaluated, Evaluated | None], None]
_POLL = 0.05  # seconds between looks at the scores of other workers


def _hide(plan: Evaluated, best: Evaluated | None) -> None: ...


def search(
    task: Task, judge: Judge, store: Store, progress: Progress, show: Show = _hide
) -> dict[Genome, Evaluated]:
    """Score plans by the searcher, and as many, as `task.settings` say.

    Args:
        task: what is searched for.
        judge: scores a plan, given its choices by site.
        store: where scores are kept and shared with other workers.
        progress: told of each plan that is scored from now on.
        show: told of each plan, those that were scored before a kill included.

    Returns:
        All scored plans, in the order of the search.
    """
    searcher = SEARCHERS[task.settings.searcher](task)
    headings = "search: each candidate alone", "search"
    return _run(searcher, task.settings.evaluations, headings, judge, store, progress, show)


def refine(
    task: Task, known: Scores, judge: Judge, store: Store, progress: Progress, show: Show = _hide
) -> dict[Genome, Evaluated]:
    """Score plans after fit and repair, beginning from the scores `known` of `search`.

    `judge` is a scorer of that kind; `store` is not that of the search, because a plan has a score
    of each kind.
    """
    searcher = Refined(task, {g: e.score.score for g, e in known.items()})
    headings = "search: candidates fitted and repaired", "search: plans fitted and repaired"
    evaluations = max(0, task.settings.refined - len(searcher.preliminaries()))
    return _run(searcher, evaluations, headings, judge, store, progress, show)


def complete(
    plans: Iterable[Genome], task: Task, judge: Judge, store: Store, progress: Progress
) -> dict[Genome, Evaluated]:
    """The scores of these plans in the store, from `judge` where it has none."""
    wanted, past = [*plans], store.results().keys()
    if missing := [plan for plan in wanted if plan not in past]:
        progress.begin("search: single candidates and repaired plans", len(missing))

    def report(plan: Evaluated) -> None:
        if plan.genome not in past:
            progress.advance()

    worker = _Worker(task, judge, store, report)
    if wanted:
        worker.score_round(wanted)
    return worker.known


def _run(
    searcher: Searcher,
    evaluations: int,
    headings: tuple[str, str],
    judge: Judge,
    store: Store,
    progress: Progress,
    show: Show,
) -> dict[Genome, Evaluated]:
    """Score the searcher's preliminaries, and then `evaluations` plans that it proposes."""
    task, past = searcher.task, store.results().keys()
    worker = _Worker(task, judge, store, _Reporter(task, progress, show, past))
    known = worker.known
    if first := searcher.preliminaries():
        progress.begin(headings[0], len(first), len(past & {*first}))
        worker.score_round(first)
    before, wanted = len(known), min(evaluations, task.space.size - len(known))
    progress.begin(headings[1], wanted, min(wanted, len(past - {*first})))
    while len(known) < before + wanted:
        plans = searcher.propose({g: s.score.score for g, s in sorted(known.items())})
        plans = plans[: before + wanted - len(known)]
        if not plans:
            break
        worker.score_round(plans)
    return known


@dataclass
class _Reporter:
    """Tells of each plan that was scored; tells the progress of those that are not `past`."""

    task: Task
    progress: Progress
    show: Show
    past: Collection[Genome]
    best: Evaluated | None = None  # within the limits

    def __call__(self, plan: Evaluated) -> None:
        best = self.best.score.score if self.best else math.inf
        if self.task.meets(plan.genome) and plan.score.score < best:
            self.best = plan
        self.show(plan, self.best)
        if plan.genome not in self.past:
            score = self.best and self.best.score
            what = measure_of(self.task.reference)
            note = f"best {score.score:.4f}, {what} {score.top1:.2f} %" if score else ""
            self.progress.advance(note)


@dataclass
class _Worker:
    """This process's part in a search; `known` are the scores of all rounds that have ended."""

    task: Task
    judge: Judge
    store: Store
    report: Callable[[Evaluated], None]
    known: dict[Genome, Evaluated] = field(default_factory=dict)

    def score_round(self, plans: Sequence[Genome]) -> None:
        """Have all of the plans scored, here or by other workers."""
        done: dict[Genome, Evaluated] = {}
        waiting = sorted(plans)
        # Workers begin at different plans.
        last = waiting[zlib.crc32(self.store.worker.encode()) % len(waiting)]
        while waiting:
            results = self.store.results()
            for plan in [plan for plan in waiting if plan in results]:
                waiting.remove(plan)
                done[plan] = results[plan]
                self.report(results[plan])
            # The plan that begins most like the last one shares most activations with it.
            waiting.sort(key=lambda plan: (-_common_prefix(plan, last), plan))
            mine = next((plan for plan in waiting if self.store.claim(plan)), None)
            if mine is not None:
                last = mine
                self._score(mine)
            elif waiting:
                time.sleep(_POLL)
        # Only now, and in an order of their own: no score may depend on how the round was shared.
        self.known.update(sorted(done.items()))

    def _score(self, plan: Genome) -> None:
        stop_early = self.task.settings.stop_early
        hopeless = certainly_dominated(plan, self.known, self.task) if stop_early else never
        with self.store.scoring(plan):
            start = time.perf_counter()
            score = self.judge(self.task.space.choices(plan), hopeless)
            self.store.finish(plan, score, time.perf_counter() - start)


def _common_prefix(plan: Genome, other: Genome) -> int:
    """The number of sites at which two plans begin alike."""
    pairs = enumerate(zip(plan, other, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(plan))
