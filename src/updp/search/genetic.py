"""Stage 2: a genetic search (NSGA-II, optuna) for the plan that keeps most at the budget.

A genome is a priority per site; sites are pruned in that order until the budget is met, so every
genome is a valid plan for any kind of budget. Two objectives, score and cost, give a Pareto front;
the best score on it is the result, as all plans meet the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.samplers import NSGAIISampler
from optuna.trial import TrialState

from updp.engine.feed import mix
from updp.engine.files import Figures
from updp.engine.progress import Progress
from updp.recipe import Recipe
from updp.search.budget import Costs

Score = Callable[[Mapping[str, str]], tuple[float, float]]


@dataclass(frozen=True)
class Evaluated:
    """A plan that was scored: pruned sites, score (lower is better), top-1 in percent."""

    sites: tuple[str, ...]
    score: float
    top1: float


class _Memory:
    """Scores by plan, in a log that survives a kill; no plan is evaluated twice."""

    def __init__(self, score: Score, costs: Costs, log: Figures) -> None:
        self.score, self.costs, self.log = score, costs, log
        log.keep(lambda row: True)  # without what a kill tore
        self.known = {
            tuple(row["sites"]): Evaluated(tuple(row["sites"]), row["score"], row["top1"])
            for row in log.rows()
        }

    def __call__(self, sites: tuple[str, ...]) -> Evaluated:
        if sites not in self.known:
            score, top1 = self.score({name: self.costs.sites[name].label for name in sites})
            score = math.inf if math.isnan(score) else score  # its logits are no numbers
            self.known[sites] = Evaluated(sites, score, top1)
            ms = self.costs.latency(sites)
            self.log.add(sites=sites, score=score, top1=top1, predicted_ms=ms)
        return self.known[sites]


def search(
    score: Score, costs: Costs, recipe: Recipe, folder: Path, progress: Progress
) -> tuple[Evaluated, list[Evaluated]]:
    """The best plan within the budget, and all plans that were scored.

    First each site is scored alone, which seeds the population. Continues from `study.db` and
    `figures.jsonl` in `folder`: optuna stores no random state, so every trial's is derived from
    the number of trials before it.
    """
    budget = recipe.budget
    assert budget is not None
    costs.check(budget)
    memory = _Memory(score, costs, Figures(folder / "figures.jsonl"))
    names = tuple(costs.sites)
    done = len(memory.known)
    progress.begin("search: each site alone", len(names), min(done, len(names)))
    damage = {}
    for name in names:
        fresh = (name,) not in memory.known
        damage[name] = memory((name,)).score
        if fresh:
            progress.advance()
    order = sorted(names, key=damage.__getitem__)

    def decode(priority: Mapping[str, float]) -> tuple[str, ...]:
        return costs.fill(sorted(names, key=lambda name: -priority[name]), budget)

    study = _open(folder)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    seen = {decode(trial.params) for trial in complete}
    trials, wanted = len(complete), min(recipe.search.evaluations, costs.plans(budget))
    progress.begin("search", wanted, len(seen))
    # A search that only finds plans it knows ends too.
    while len(seen) < wanted and trials < 10 * wanted:
        study.sampler = NSGAIISampler(
            population_size=recipe.search.population, seed=mix(recipe.seed, 20, trials) % 2**32
        )
        if trials == 0:
            study.enqueue_trial({name: 1 - i / len(names) for i, name in enumerate(order)})
        trial = study.ask()
        plan = decode({name: trial.suggest_float(name, 0, 1) for name in names})
        result = memory(plan)
        study.tell(trial, [result.score, costs.cost(plan, budget)])
        trials += 1
        if plan not in seen:
            seen.add(plan)
            best = min((memory(p) for p in sorted(seen)), key=lambda e: e.score)
            progress.advance(f"best {best.score:.4f}, top-1 {best.top1:.2f} %")
    evaluated = [memory(plan) for plan in sorted(seen)]
    return min(evaluated, key=lambda e: e.score), evaluated


def _open(folder: Path) -> optuna.Study:
    """The study in `folder`, new or continued."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="search",
        storage=f"sqlite:///{(folder / 'study.db').resolve()}",
        directions=["minimize", "minimize"],
        load_if_exists=True,
    )
    # What was under way when it was killed.
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        if trial.state is TrialState.WAITING:
            study.ask()  # takes the waiting one, which could not be told otherwise
        study.tell(trial.number, state=TrialState.FAIL)
    return study
