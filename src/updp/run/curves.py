"""Curves of what is not trained: plans as they are scored, and what a run ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from updp.io.tracking import Curves
from updp.run.result import Result
from updp.search import Evaluated


@contextmanager
def drawn(curves: Curves) -> Iterator[Callable[[Evaluated, Evaluated | None], None]]:
    """Draws each plan's score and top-1, and the best within the budget, over evaluations."""
    count = 0
    curves.restart()

    def show(plan: Evaluated, best: Evaluated | None) -> None:
        nonlocal count
        row: dict[str, float] = {"step": count, "score": plan.score.score, "top1": plan.score.top1}
        if best is not None:
            row |= {"best": best.score.score, "best_top1": best.score.top1}
        curves.add(row)
        count += 1

    try:
        yield show
    finally:
        curves.close()


def draw_result(curves: Curves, result: Result) -> None:
    """Draws top-1 after each stage, each in a chart of its own name, and the speed-up."""
    row: dict[str, float] = {"step": 0, "speedup": result.speedup.median}
    for stage, top1 in result.top1_by_stage.items():
        row[f"top1_{stage.replace(' ', '_')}"] = top1
    curves.restart([row])
    curves.close()
