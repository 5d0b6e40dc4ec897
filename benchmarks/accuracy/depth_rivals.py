"""Depth pruners, each as a way to choose among updp's candidates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.accuracy.methods import DIRECT, INHERIT, METHODS, UPDP
from benchmarks.accuracy.plans import Choices, Subject, searched
from benchmarks.accuracy.rivals import Plans
from benchmarks.accuracy.stopwatch import Stopwatch
from benchmarks.common.clock import Clock
from updp.candidates import Candidate, Drop
from updp.errors import UserError
from updp.io.files import read_json, write_json
from updp.run.pipeline import Run, open_run_directory
from updp.search import Limits, Scorer
from updp.search.integer_program import IntegerProgram

Importance = dict[str, dict[str, float]]  # by site and candidate

_DROP = ("candidates.drop=always", *INHERIT, *DIRECT)
_SHRINK = METHODS["direct"].settings
_MERGE = (
    *("candidates.end_activation=false", "candidates.linearise=false", "candidates.drop=always"),
    *(*INHERIT, *DIRECT),
)
_SHARES = [i / 50 for i in range(49, 9, -1)]  # of the baseline's latency
_AGAIN = 4  # searches at most for one point
_ENOUGH = 0.95  # share of a point's latency from which on a plan is near enough to it


def dropping(subject: Subject, folder: Path, clock: Clock) -> Plans:
    """Layer dropping: whole branches are left out."""
    run = surveyed(subject, _DROP, folder, clock)
    importance = importance_alone(run, clock, lambda c: isinstance(c, Drop))
    about = "branches left out, those first that alone change the logits least"
    plans = one_by_one(importance)
    return Plans("layer dropping", about, subject, _DROP, plans, run.context.survey)


def shrinking(subject: Subject, folder: Path, clock: Clock) -> Plans:
    """As DepthShrinker (Fu et al., ICML 2022): activations go at once, then training."""
    run = surveyed(subject, _SHRINK, folder, clock)
    importance = importance_alone(run, clock, lambda c: not isinstance(c, Drop))
    about = (
        "merged blocks in the paper's form, each with the candidate that takes least away, those "
        "first that alone change the logits least; activations removed at once"
    )
    plans = one_by_one(importance)
    return Plans("DepthShrinker's way", about, subject, _SHRINK, plans, run.context.survey)


def adding_up(subject: Subject, folder: Path, clock: Clock) -> Plans:
    """As LayerMerge (Kim et al., ICML 2024): importance and latency of each candidate add up."""
    run = surveyed(subject, _MERGE, folder, clock)
    importance = importance_alone(run, clock, lambda c: True)
    about = (
        "of all candidates those whose importances alone add up to least within the latency, by "
        "integer programming; activations removed at once"
    )
    space, plans = run.context.space, list[Choices]()
    program = IntegerProgram(space)
    weights = [importance[site.name][o.label] for site in space.sites for o in site.options]
    for share in _SHARES:
        genome = program.best(weights, Limits({"latency": share * space.ms}))
        if genome is not None and (choices := space.choices(genome)) and choices not in plans:
            plans.append(choices)
    return Plans("LayerMerge's way", about, subject, _MERGE, plans, run.context.survey)


def searching(
    subject: Subject, folder: Path, clock: Clock, stopwatch: Stopwatch, point: float
) -> Plans:
    """updp's default recipe with a budget of latency: its best plans within `point`.

    Plans may turn out slower or faster than predicted. The budget is then changed by as much, and
    the search done again, a few times.

    Args:
        subject: the network and its images.
        folder: of all searches.
        clock: the time limit.
        stopwatch: measures plans.
        point: the wanted share of the baseline's latency.
    """
    about = "the default recipe: plans searched within the latency"
    best: tuple[float, Plans] | None = None
    budget = point
    for _ in range(_AGAIN):
        recipe = subject.recipe(*UPDP, f"budget={{latency: {min(budget, 0.99):.3f}}}")
        try:
            run = searched(subject, recipe, folder, clock)
        except UserError as error:
            if "out of reach" not in str(error):
                raise
            break
        survey = run.context.survey
        found = Plans("updp", about, subject, UPDP, best_plans(run), survey, ordered=False)
        number = stopwatch.largest(found, point)
        share = stopwatch.share(found, number or 0, point)
        if number is not None:
            best = max(best or (0.0, found), (budget, found), key=lambda pair: pair[0])
            if share > _ENOUGH * point:
                break
        budget *= min(max(point / share, 0.7), 1.3)
    if best is not None:
        return best[1]
    survey = surveyed(subject, UPDP, folder, clock).context.survey
    return Plans("updp", about, subject, UPDP, [], survey, ordered=False)


def best_plans(run: Run) -> list[Choices]:
    """The plan that a search chose, and the others within the budget that it fitted, best first."""
    limit = run.context.limits().amounts["latency"]
    result = run.directory.search_result()
    within = [p for p in result.points if p.fitted is not None and p.latency <= limit]
    within.sort(key=lambda p: p.last_score)
    best = [p.choices for p in within[: run.inputs.recipe.search.timed]]
    chosen = result.plan.choices
    return best if chosen in best else [chosen, *best]


def surveyed(subject: Subject, settings: tuple[str, ...], folder: Path, clock: Clock) -> Run:
    """A run that has found and timed what each site may become."""
    recipe = subject.recipe(*settings)
    folder = folder / recipe.hash()[:6]
    run = open_run_directory(subject.inputs(recipe, clock), folder, last="sites")
    run.until("sites")
    return run


def importance_alone(run: Run, clock: Clock, wanted: Callable[[Candidate], bool]) -> Importance:
    """KL of the logits on held-out images when one wanted candidate alone prunes, untrained."""
    context = run.context
    file = run.directory.path / "alone.json"
    if not file.exists():
        scorer = Scorer(context.net, context.baseline, context.feed, context.recipe)
        found: Importance = {}
        for site, offers in context.offers.items():
            for candidate in [o.candidate for o in offers if wanted(o.candidate)]:
                clock.check()
                score = scorer({site: candidate.label}).score
                found.setdefault(site, {})[candidate.label] = score
        write_json(file, found)
    return dict(read_json(file))


def one_by_one(importance: Importance) -> list[Choices]:
    """Plans of one site, of two, and so on: least important first, with their first candidates."""
    first = {site: next(iter(of_site.items())) for site, of_site in importance.items()}
    order = sorted(first, key=lambda site: first[site][1])
    return [{site: first[site][0] for site in order[: k + 1]} for k in range(len(order))]
