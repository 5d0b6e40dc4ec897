"""Depth pruners as ways to choose among updp's candidates: by importance alone, or by search."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from clock import Clock
from fitting import Stopwatch
from methods import DIRECT, INHERIT, METHODS, UPDP
from plans import Choices, Subject, searched, sites_of
from rivals import Plans

from updp.candidates import Candidate, Drop
from updp.errors import UserError
from updp.io.files import read_json, write_json
from updp.run.pipeline import Run
from updp.search import Limits, Scorer, limits_of
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
_ENOUGH = 0.95  # of a point's latency is near enough to it


def dropping(subject: Subject, folder: Path, clock: Clock) -> Plans:
    """Layer dropping."""
    run = surveyed(subject, _DROP, folder, clock)
    importance = alone(run, clock, lambda c: isinstance(c, Drop))
    about = "branches left out, those first that alone change the logits least"
    plans = one_by_one(importance)
    return Plans("layer dropping", about, subject, _DROP, plans, sites_of(run))


def shrinking(subject: Subject, folder: Path, clock: Clock) -> Plans:
    """As DepthShrinker (Fu et al., ICML 2022): activations go at once, then training."""
    run = surveyed(subject, _SHRINK, folder, clock)
    importance = alone(run, clock, lambda c: not isinstance(c, Drop))
    about = (
        "merged blocks in the paper's form, each with the candidate that takes least away, those "
        "first that alone change the logits least; activations removed at once"
    )
    plans = one_by_one(importance)
    return Plans("DepthShrinker's way", about, subject, _SHRINK, plans, sites_of(run))


def adding_up(subject: Subject, folder: Path, clock: Clock) -> Plans:
    """As LayerMerge (Kim et al., ICML 2024): importance and latency of each candidate add up."""
    run = surveyed(subject, _MERGE, folder, clock)
    importance = alone(run, clock, lambda c: True)
    about = (
        "of all candidates those whose importances alone add up to least within the latency, by "
        "integer programming; activations removed at once"
    )
    space, plans = run.space, list[Choices]()
    program = IntegerProgram(space)
    weights = [importance[site.name][o.label] for site in space.sites for o in site.options]
    for share in _SHARES:
        genome = program.best(weights, Limits({"latency": share * space.ms}))
        if genome is not None and (choices := space.choices(genome)) and choices not in plans:
            plans.append(choices)
    return Plans("LayerMerge's way", about, subject, _MERGE, plans, sites_of(run))


def searching(
    subject: Subject, folder: Path, clock: Clock, stopwatch: Stopwatch, point: float
) -> Plans:
    """updp's default recipe with a budget of latency: its best plans that are within the point.

    What candidates save is predicted from their own latencies, so plans may turn out slower or
    faster than their budget. It is then changed by as much, and searched again, a few times.
    """
    about = "the default recipe: plans searched within the latency"
    none = Plans("updp", about, subject, UPDP, [], {}, ordered=False)
    kept, budget = (0.0, none), point
    for _ in range(_AGAIN):
        recipe = subject.recipe(*UPDP, f"budget={{latency: {min(budget, 0.99):.3f}}}")
        try:
            run = searched(subject, recipe, folder, clock)
        except UserError as error:
            if "out of reach" not in str(error):
                raise
            break
        found = Plans("updp", about, subject, UPDP, best(run), sites_of(run), ordered=False)
        number = stopwatch.largest(found, point)
        share = stopwatch.share(found, number or 0, point)
        if number is not None:
            kept = max(kept, (budget, found), key=lambda pair: pair[0])
            if share > _ENOUGH * point:
                break
        budget *= min(max(point / share, 0.7), 1.3)
    return kept[1]


def best(run: Run) -> list[Choices]:
    """The best plans that its search found within its budget, the best first."""
    assert run.recipe.budget is not None
    limit = limits_of(run.recipe.budget, run.space).amounts["latency"]
    within = [p for p in run.outcome().points if p.fitted is not None and p.latency <= limit]
    within.sort(key=lambda p: math.inf if p.fitted is None else p.fitted)
    return [p.choices for p in within[: run.recipe.search.timed]]


def surveyed(subject: Subject, settings: tuple[str, ...], folder: Path, clock: Clock) -> Run:
    """A run that has found and timed what each site may become."""
    recipe = subject.recipe(*settings)
    run = Run(subject.job(recipe, clock), folder / recipe.hash()[:6], last="sites")
    run.sites()
    return run


def alone(run: Run, clock: Clock, wanted: Callable[[Candidate], bool]) -> Importance:
    """What each wanted candidate alone does to the logits, without training: KL, held out."""
    file = run.directory.path / "alone.json"
    if not file.exists():
        scorer = Scorer(run.net(), run.baseline, run.feed, run.recipe)
        found: Importance = {}
        for site, offers in run.sites().items():
            for candidate in [o.candidate for o in offers if wanted(o.candidate)]:
                clock.check()
                score = scorer({site: candidate.label}).score
                found.setdefault(site, {})[candidate.label] = score
        write_json(file, found)
    return dict(read_json(file))


def one_by_one(importance: Importance) -> list[Choices]:
    """Plans of one site, of two, and so on, each with its first candidate, least first."""
    first = {site: next(iter(found.items())) for site, found in importance.items()}
    order = sorted(first, key=lambda site: first[site][1])
    return [{site: first[site][0] for site in order[: k + 1]} for k in range(len(order))]
