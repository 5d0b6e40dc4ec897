"""The search loop: ask the searcher for plans, score and report them, until there are enough.

Several processes ask the same questions, score different plans of a round, and continue when all of
them are scored. So the outcome depends neither on their number nor on where a search was killed.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from updp.errors import UserError
from updp.io import processes
from updp.io.progress import Progress
from updp.search.front import certainly_dominated
from updp.search.score import Hopeless, Score, never
from updp.search.scores import Evaluated, ScoreFile, Scores
from updp.search.searchers import SEARCHERS, SearchTask
from updp.search.searchers.base import Searcher
from updp.search.searchers.refined import Refined
from updp.search.space import Genome

ScorePlan = Callable[[Mapping[str, str], Hopeless], Score]
# Called with a scored plan, and the best plan so far within the limits.
Show = Callable[[Evaluated, Evaluated | None], None]


def _hide(plan: Evaluated, best: Evaluated | None) -> None: ...


def search(
    task: SearchTask, score_plan: ScorePlan, file: ScoreFile, progress: Progress, show: Show = _hide
) -> dict[Genome, Evaluated]:
    """Score plans with the searcher and for the number of evaluations set in `task.settings`.

    Args:
        task: the task of the search.
        score_plan: scores a plan, given its choices by site.
        file: stores the scores, including those from before a kill.
        progress: is told of each plan that is scored from now on.
        show: is told of each plan, including those in the file.

    Returns:
        All scored plans, in the order of the search; at least one is within the limits.
    """
    searcher = SEARCHERS[task.settings.searcher](task)
    headings = "search: each candidate alone", "search"
    evaluations = task.settings.evaluations
    rounds = _Rounds(task, score_plan, file, progress, show)
    return rounds.run(searcher, evaluations, headings, ends_within=True)


def refine(
    task: SearchTask,
    known: Scores,
    score_plan: ScorePlan,
    file: ScoreFile,
    progress: Progress,
    show: Show = _hide,
    *,
    before: Scores | None = None,
) -> dict[Genome, Evaluated]:
    """Score plans after fit and repair, beginning from the scores `known` of `search`.

    `score_plan` must be a scorer of this kind. `file` must not be the file of the search, because a
    plan has a score of each kind. `before` are earlier scores of this kind: then half as many plans
    as usual are added to them.
    """
    scored = () if before is None else tuple(before)
    searcher = Refined(task, {g: e.score.score for g, e in known.items()}, scored)
    headings = "search: candidates fitted and repaired", "search: plans fitted and repaired"
    evaluations = max(0, task.settings.refined - len(searcher.preliminaries()))
    if before is not None:
        evaluations = task.settings.refined // 2
    rounds = _Rounds(task, score_plan, file, progress, show)
    return rounds.run(searcher, evaluations, headings)


def score_missing(
    plans: Iterable[Genome],
    task: SearchTask,
    score_plan: ScorePlan,
    file: ScoreFile,
    progress: Progress,
) -> dict[Genome, Evaluated]:
    """Scores of these plans from the file; missing ones are computed with `score_plan`."""
    wanted = [*plans]
    if missing := {*wanted} - {*file.scored}:
        progress.begin("search: single candidates and repaired plans", len(missing))
    rounds = _Rounds(task, score_plan, file, progress)
    rounds.score(wanted)
    return rounds.known


@dataclass
class _Rounds:
    """Scores plans round by round; `known` are the scores of all finished rounds."""

    task: SearchTask
    score_plan: ScorePlan
    file: ScoreFile
    progress: Progress
    show: Show = _hide
    known: dict[Genome, Evaluated] = field(default_factory=dict)
    best: Evaluated | None = None  # of those within the limits

    def __post_init__(self) -> None:
        self.past = {*self.file.scored}  # they count as no progress

    def run(
        self,
        searcher: Searcher,
        evaluations: int,
        headings: tuple[str, str],
        *,
        ends_within: bool = False,
    ) -> dict[Genome, Evaluated]:
        """Score the searcher's preliminaries, and then `evaluations` plans that it proposes.

        With `ends_within`, score one more plan if none of these is within the limits.
        """
        task, known = self.task, self.known
        if first := searcher.preliminaries():
            self.progress.begin(headings[0], len(first), len(self.past & {*first}))
            self.score(first)
            scores = [plan.score.score for g, plan in known.items() if g != task.space.keep]
            if scores and not any(map(math.isfinite, scores)):
                raise UserError(
                    "search: no site can be pruned without infinite or NaN logits: are some of the "
                    "model's weights extremely large?"
                )
        before, wanted = len(known), min(evaluations, task.space.size - len(known))
        self.progress.begin(headings[1], wanted, min(wanted, len(self.past - {*first})))
        while len(known) < before + wanted:
            plans = searcher.propose({g: s.score.score for g, s in sorted(known.items())})
            plans = plans[: before + wanted - len(known)]
            if not plans:
                break
            self.score(plans)
        if ends_within and not any(map(task.meets, known)):  # evaluations ran out on the way
            self.score([task.nearest(task.space.keep, [0.0] * len(task.program.options))])
        return known

    def score(self, plans: Sequence[Genome]) -> None:
        """Score the plans that are not in the file, here or in another process."""
        done = {plan: self.file.scored[plan] for plan in plans if plan in self.file.scored}
        for plan in sorted(done):
            self._report(done[plan])
        # Neighbours share most activations, so each process gets a contiguous row of plans.
        waiting = sorted(set(plans) - done.keys())
        length = -(-len(waiting) // processes.count())
        rows = [waiting[start : start + length] for start in range(0, len(waiting), length or 1)]
        mine = rows[rank] if (rank := processes.rank()) < len(rows) else []
        for number in range(length):
            own = [self._evaluate(plan).to_json() for plan in mine[number : number + 1]]
            new = [Evaluated.from_json(row) for rows in processes.all_gather(own) for row in rows]
            self.file.add(new)
            for each in new:
                done[each.genome] = each
                self._report(each)
        # Only now, and sorted: no score may depend on how the round was shared out.
        self.known.update(sorted(done.items()))

    def _report(self, plan: Evaluated) -> None:
        best = self.best.score.score if self.best else math.inf
        if self.task.meets(plan.genome) and plan.score.score < best:
            self.best = plan
        self.show(plan, self.best)
        if plan.genome not in self.past:
            score = self.best and self.best.score
            metric = self.task.metric
            found = f"{metric.name} {metric.text(score.metric)}" if score else ""
            note = f"best {score.score:.4f}, {found}" if score else ""
            self.progress.advance(note)

    def _evaluate(self, plan: Genome) -> Evaluated:
        stop_early = self.task.settings.stop_early
        hopeless = certainly_dominated(plan, self.known, self.task) if stop_early else never
        with processes.on_its_own():
            return Evaluated(plan, self.score_plan(self.task.space.choices(plan), hopeless))
