"""The search itself: ask the searcher, score what it proposes, tell it, until it has enough.

Any number of processes run this loop on one store. Each asks the same questions, scores those
plans of a round that nobody has claimed yet, and goes on when all of the round are scored. So the
outcome depends neither on how many there are nor on who was killed when.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence

from updp.engine.progress import Progress
from updp.search.front import certainly_dominated
from updp.search.score import Score
from updp.search.searchers import SEARCHERS, Task
from updp.search.space import Genome
from updp.search.store import Evaluated, Store

Judge = Callable[[Mapping[str, str], Callable[[float], bool]], Score]
_POLL = 0.05  # seconds between looks at what other workers do


def search(task: Task, judge: Judge, store: Store, progress: Progress) -> dict[Genome, Evaluated]:
    """All plans that were scored, by the searcher and for the number of them in the settings."""
    searcher = SEARCHERS[task.settings.searcher](task)
    known: dict[Genome, Evaluated] = {}
    first = searcher.preliminaries()
    if first:
        progress.begin("search: each candidate alone", len(first))
        known |= _round(first, known, task, judge, store, progress)
    before, wanted = len(known), min(task.settings.evaluations, task.space.size - len(known))
    progress.begin("search", wanted)
    while len(known) < before + wanted:
        plans = searcher.propose({g: s.score.score for g, s in sorted(known.items())})
        plans = plans[: before + wanted - len(known)]
        if not plans:
            break
        known |= _round(plans, known, task, judge, store, progress)
    return known


def _round(
    plans: Sequence[Genome],
    known: Mapping[Genome, Evaluated],
    task: Task,
    judge: Judge,
    store: Store,
    progress: Progress,
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
            progress.advance(_note(task, {**known, **done}))
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


def _note(task: Task, known: Mapping[Genome, Evaluated]) -> str:
    within = [s for s in known.values() if task.meets(s.genome)]
    if not within:
        return ""
    best = min(within, key=lambda s: s.score.score).score
    return f"best {best.score:.4f}, top-1 {best.top1:.2f} %"
