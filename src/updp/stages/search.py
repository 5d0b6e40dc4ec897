"""Stage 2: score plans, score the best again after fit and repair, time those, choose one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from updp import search
from updp.errors import UserError
from updp.io import processes
from updp.io.files import write_json, write_text
from updp.io.records import Record
from updp.io.tracking import Board, Curves
from updp.measure import Latency
from updp.plan import Plan
from updp.search import (
    Evaluated,
    FittedScorer,
    ScoreFile,
    Scorer,
    Scores,
    SearchResult,
    SearchTask,
)
from updp.search.front_plot import plot_front
from updp.search.space import Genome
from updp.stages.context import Context, StageKey
from updp.supernet.timing import time_plans

# Files of the scores: as the supernet has the plans, and after fit and repair.
SCORES, FITTED = "scores.jsonl", "fitted.jsonl"
_TIMINGS = 3  # maximum number of timings, while none of the best plans meets the budget


class SearchKey(StageKey):
    """The budget and the settings of the search; for a given plan its choices."""

    FILE: ClassVar[str] = "search/key.json"
    # Settings of the search that decide the outcome; of a given plan `choices` and `blended`.
    search: dict[str, Any] | None = None
    refines: bool = False  # whether the best plans are scored again as stage 3 fits them
    budget: str = ""  # the budget as text; empty for a given plan


class TimedPlans(Record):
    """The best plans so far, timed end to end to correct predicted latencies in the search."""

    FILE: ClassVar[str] = "search/timed.json"
    # Plans in numbers: for each site 0 (kept) or the number of its candidate.
    genomes: tuple[Genome, ...]
    latencies: tuple[Latency, ...]  # latency of each plan for a batch, compared with the baseline's

    @property
    def timings(self) -> dict[Genome, Latency]:
        """The latency of each plan."""
        return dict(zip(self.genomes, self.latencies, strict=True))


def make_key(context: Context) -> SearchKey:
    """The key of this stage."""
    recipe = context.recipe
    if context.plan is not None:
        # `blended` also decides the images by which training is stopped.
        given = {"choices": _sorted(context.plan.choices), "blended": recipe.search.blended}
        return SearchKey(search=given)
    return SearchKey(
        search=recipe.search.decisive(), refines=recipe.refines, budget=str(recipe.budget)
    )


def _sorted(choices: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(choices.items()))


def check(context: Context) -> None:
    """Raise UserError if the budget is missing or out of reach."""
    context.limits()


def run(context: Context) -> None:
    """Write `plan.json`, and after a search `front.json` and `front.svg`."""
    if context.plan is not None:
        write_text(context.folder("search") / Plan.FILE, context.plan.to_json())
        return
    context.load_weights(context.net, "supernet")
    task, known, refined = score_plans(context, make_task(context), context.board)
    if processes.is_first():
        result = choose(context, task, known, refined)
        write_result(context, result, str(context.recipe.budget), context.folder("search"))


def make_task(context: Context) -> SearchTask:
    """The searcher's task. Raises UserError if the budget is out of reach."""
    recipe = context.recipe
    return SearchTask(
        context.space,
        context.limits(),
        recipe.search,
        recipe.seed,
        context.metric(labelled=context.feed.labelled),
    )


def score_plans(
    context: Context, task: SearchTask, board: Board
) -> tuple[SearchTask, Scores, Scores]:
    """Score plans until there are enough.

    Returns:
        The task, with savings of candidates corrected by timings of whole plans; scores of plans
        with the supernet's weights; and scores after fit and repair, empty if stage 3 does not
        start from a fit.
    """
    progress = context.progress
    scorer = Scorer(context.net, context.baseline, context.feed, context.recipe)
    file = ScoreFile(context.folder("search") / SCORES)
    with _shown(board.curves("search"), task) as show:
        known = search.search(task, scorer, file, progress, show)
    if not context.recipe.refines:
        return task, known, {}
    # Refinement needs the score of each single candidate, which not every searcher computes.
    singles = [task.space.keep, *task.space.singles()]
    known |= search.score_missing(singles, task, scorer, file, progress)
    task, refined = _refined(context, task, known, board)
    return task, known | search.score_missing(refined, task, scorer, file, progress), refined


def _refined(
    context: Context, task: SearchTask, known: Scores, board: Board
) -> tuple[SearchTask, Scores]:
    """Score the best plans again after fit and repair; time them, and correct the task by that.

    If the predicted latencies prove wrong, plans are refined once more by the corrected ones.
    """
    scorer = FittedScorer(context.net, context.baseline, context.feed, context.recipe)
    file = ScoreFile(context.folder("search") / FITTED)
    with _shown(board.curves("refined"), task) as show:
        refined = search.refine(task, known, scorer, file, context.progress, show)
        if "latency" in task.limits.amounts:
            times = _timed(context, task, search.finalists(known, refined, task))
            if search.prediction_is_off(task, times):
                task = search.with_measured_savings(task, times)
                refined = search.refine(
                    task, known, scorer, file, context.progress, show, before=refined
                )
    return task, refined


def choose(context: Context, task: SearchTask, known: Scores, refined: Scores) -> SearchResult:
    """Time the best of the scored plans end to end, and choose one.

    If all of them are too slow, predictions are corrected by their times, and the best plans that
    should then meet the budget are timed as well.
    """
    budget = context.recipe.budget
    assert budget is not None
    before = TimedPlans.read_if_there(context.root)
    earlier = {} if before is None else before.timings
    timed: dict[Genome, Latency] = {}
    for _ in range(_TIMINGS):
        plans = [g for g in search.finalists(known, refined, task) if g not in timed]
        timed |= _time(context, task, plans)
        if "latency" not in task.limits.amounts or search.within_latency(task, earlier | timed):
            break
        task = search.with_measured_savings(task, earlier | timed)
    result = search.choose_plan(known, refined, task, budget, earlier | timed)
    chosen = result.plan
    found = f"{task.metric.name} {task.metric.text(chosen.last_metric or 0.0)}"
    context.progress.say(
        f"search: {len(known)} plans scored, {len(refined)} fitted and repaired; the chosen "
        f"one has {found} on held-out images and prunes {', '.join(chosen.choices)}"
    )
    return result


def _timed(context: Context, task: SearchTask, plans: Sequence[Genome]) -> dict[Genome, Latency]:
    """Latencies of plans; read from the file if a killed search has timed them already."""
    found: TimedPlans | None = None
    if processes.is_first():
        found = TimedPlans.read_if_there(context.root)
        if found is None:
            times = _time(context, task, plans)
            found = TimedPlans(genomes=tuple(times), latencies=tuple(times.values()))
            found.write(context.root)
    record = processes.broadcast(found and found.model_dump(mode="json"))
    return TimedPlans.parsed(record, TimedPlans.FILE).timings


def _time(context: Context, task: SearchTask, plans: Sequence[Genome]) -> dict[Genome, Latency]:
    """Measure the latencies of plans end to end."""
    if not plans:
        return {}
    measure = context.recipe.measure
    context.progress.begin("search: timing the best plans", measure.rounds)
    x = context.example(measure.batch_size)
    choices = [task.space.choices(plan) for plan in plans]
    net, advance = context.net.eval(), context.progress.advance
    times = time_plans(context.baseline, net, choices, x, measure, advance)
    return dict(zip(plans, times, strict=True))


def write_result(context: Context, result: SearchResult, budget: str, folder: Path) -> None:
    """Write `front.json`, `front.svg` and `plan.json` into the folder of a search stage."""
    hashes = {
        "model": context.hashes.weights,
        "data": context.hashes.data,
        "recipe": context.recipe.hash(),
    }
    plan = result.make_plan(context.offers, budget, hashes)
    try:
        plot_front(result, folder / "front.svg")
    except UserError as error:  # a missing plotting package must not cost a finished search
        context.progress.say(f"search: {error}")
    write_json(folder / "front.json", result.model_dump(mode="json"))
    write_text(folder / Plan.FILE, plan.to_json())


@contextmanager
def _shown(
    curves: Curves, task: SearchTask
) -> Iterator[Callable[[Evaluated, Evaluated | None], None]]:
    """Context that plots score and metric of each plan and of the best one within the budget."""
    count, name = 0, task.metric.key
    curves.restart()

    def show(plan: Evaluated, best: Evaluated | None) -> None:
        nonlocal count
        row: dict[str, float] = {"step": count, "score": plan.score.score, name: plan.score.metric}
        if best is not None:
            row |= {"best": best.score.score, f"best_{name}": best.score.metric}
        curves.add(row)
        count += 1

    try:
        yield show
    finally:
        curves.close()
