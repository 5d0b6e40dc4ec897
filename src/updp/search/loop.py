"""The search itself: ask the searcher, score what it proposes, tell it, until it has enough.

Any number of processes run this loop on one store. Each asks the same questions, scores those
plans of a round that nobody has claimed yet, and goes on when all of the round are scored. So the
outcome depends neither on how many there are nor on who was killed when.
"""

import math
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from updp.io.progress import Progress
from updp.search.front import certainly_dominated
from updp.search.score import Score
from updp.search.searchers import SEARCHERS, Task
from updp.search.searchers.base import Searcher
from updp.search.searchers.refined import Refined
from updp.search.space import Genome
from updp.search.store import Evaluated, Store

Known = dict[Genome, Evaluated]
Judge = Callable[[Mapping[str, str], Callable[[float], bool]], Score]
# Given a plan that was scored, and the best so far within the limits.
Show = Callable[[Evaluated, Evaluated | None], None]
_POLL = 0.05  # seconds between looks at what other workers do


def search(
    task: Task,
    judge: Judge,
    store: Store,
    progress: Progress,
    show: Show = lambda plan, best: None,
) -> dict[Genome, Evaluated]:
    """All plans that were scored, by the searcher and for the number of them in the settings.

    `show` is told of each plan in its turn, those that were scored before a kill included.
    """
    searcher = SEARCHERS[task.settings.searcher](task)
    names = "search: each candidate alone", "search"
    return _ask(searcher, task.settings.evaluations, names, judge, store, progress, show)


def refine(
    task: Task,
    known: Mapping[Genome, Evaluated],
    judge: Judge,
    store: Store,
    progress: Progress,
    show: Show = lambda plan, best: None,
) -> dict[Genome, Evaluated]:
    """Plans after fit and repair, as `judge` scores them; `known` is what `search` gave.

    The store is another one than the search's, for a plan has a score of each kind.
    """
    searcher = Refined(task, {g: e.score.score for g, e in known.items()})
    names = "search: candidates fitted and repaired", "search: plans fitted and repaired"
    wanted = max(0, task.settings.refined - len(searcher.preliminaries()))
    return _ask(searcher, wanted, names, judge, store, progress, show)


def complete(
    plans: Iterable[Genome], task: Task, judge: Judge, store: Store, progress: Progress
) -> Known:
    """The scores of these plans in the store, from `judge` where it has none."""
    wanted, past = [*plans], store.results().keys()
    if missing := [plan for plan in wanted if plan not in past]:
        progress.begin("search: single candidates and repaired plans", len(missing))

    def told(plan: Evaluated) -> None:
        if plan.genome not in past:
            progress.advance()

    return _round(wanted, {}, task, judge, store, told) if wanted else {}


def _ask(
    searcher: Searcher,
    evaluations: int,
    names: tuple[str, str],
    judge: Judge,
    store: Store,
    progress: Progress,
    show: Show,
) -> dict[Genome, Evaluated]:
    """The searcher's preliminaries and so many plans that it proposes, scored."""
    task, known = searcher.task, Known()
    first, past = searcher.preliminaries(), store.results().keys()
    told = _Reporter(task, progress, show, past)
    if first:
        progress.begin(names[0], len(first), len(past & {*first}))
        known |= _round(first, known, task, judge, store, told)
    before, wanted = len(known), min(evaluations, task.space.size - len(known))
    progress.begin(names[1], wanted, min(wanted, len(past - {*first})))
    while len(known) < before + wanted:
        plans = searcher.propose({g: s.score.score for g, s in sorted(known.items())})
        plans = plans[: before + wanted - len(known)]
        if not plans:
            break
        known |= _round(plans, known, task, judge, store, told)
    return known


class _Reporter:
    """Tells of each plan that was scored; to the progress, those of this run of the program."""

    def __init__(
        self, task: Task, progress: Progress, show: Show, past: Collection[Genome]
    ) -> None:
        self.task, self.progress, self.show, self.past = task, progress, show, past
        self.best: Evaluated | None = None  # within the limits

    def __call__(self, plan: Evaluated) -> None:
        best = self.best.score.score if self.best else math.inf
        if self.task.meets(plan.genome) and plan.score.score < best:
            self.best = plan
        self.show(plan, self.best)
        if plan.genome not in self.past:
            score = self.best and self.best.score
            note = f"best {score.score:.4f}, top-1 {score.top1:.2f} %" if score else ""
            self.progress.advance(note)


def _round(
    plans: Sequence[Genome],
    known: Mapping[Genome, Evaluated],
    task: Task,
    judge: Judge,
    store: Store,
    told: Callable[[Evaluated], None],
) -> dict[Genome, Evaluated]:
    """Have all of the plans scored, here or elsewhere."""
    done: dict[Genome, Evaluated] = {}
    waiting = sorted(plans)
    last = waiting[zlib.crc32(store.worker.encode()) % len(waiting)]  # workers begin apart
    while waiting:
        results = store.results()
        for plan in [plan for plan in waiting if plan in results]:
            waiting.remove(plan)
            done[plan] = results[plan]
            told(results[plan])
        # What begins as the last one did shares most of what it computes.
        waiting.sort(key=lambda plan: (-_alike(plan, last), plan))
        mine = next((plan for plan in waiting if store.claim(plan)), None)
        if mine is not None:
            last = mine
            _score(mine, known, task, judge, store)
        elif waiting:
            time.sleep(_POLL)
    return {plan: done[plan] for plan in sorted(done)}


def _score(
    plan: Genome, known: Mapping[Genome, Evaluated], task: Task, judge: Judge, store: Store
) -> None:
    hopeless = certainly_dominated(plan, known, task) if task.settings.stop_early else _never
    with store.scoring(plan):
        start = time.perf_counter()
        found = judge(task.space.choices(plan), hopeless)
        store.finish(plan, found, time.perf_counter() - start)


def _alike(plan: Genome, other: Genome) -> int:
    """At how many sites two plans begin alike."""
    pairs = enumerate(zip(plan, other, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(plan))


def _never(bound: float) -> bool:
    return False
