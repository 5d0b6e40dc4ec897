"""Search by scores after fit and repair, the way in which stage 3 makes a plan.

A repair undoes most of the damage of an early site and little of a late site's, so the damage of a
candidate alone says little about the damage left. Some candidates are therefore fitted and
repaired alone, and a linear model of logarithms predicts the damage left by the others:

log(left) = b0 + b1 log(alone) + b2 t + b3 t log(alone),    t: position of the site, 0 to 1.

The integer program then proposes plans, whose scores correct the model.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from updp.search.searchers.base import Known, Searcher, SearchTask
from updp.search.searchers.surrogate import Surrogate, ranked
from updp.search.space import Genome

_ROUND = 4  # number of plans proposed at once
_SINGLES = 3  # one in this many scored plans is a single candidate
_RIDGE = 0.1  # pulls the model towards the damage of a candidate alone
_LEAST = 1e-6  # smallest damage, as a fraction of the worst, because 0 has no logarithm


class Refined(Searcher):
    """Continues where another search ended; `alone` are the scores of that search.

    `scored` are plans that were already fitted and repaired.
    """

    name = "refined"

    def __init__(self, task: SearchTask, alone: Known, scored: Sequence[Genome] = ()) -> None:
        super().__init__(task)
        self.alone, self.scored = alone, scored
        self._singles = [g for g in task.space.singles() if g in alone]

    def preliminaries(self) -> list[Genome]:
        """Some single candidates, from all over the network, and the best plan known so far."""
        count = min(len(self._singles), self.task.settings.refined // _SINGLES)
        indices = np.linspace(0, len(self._singles) - 1, count).round().astype(int)
        some = [self._singles[index] for index in indices]
        return list(dict.fromkeys([*some, *self.scored, *ranked(self.task, self.alone)[:1]]))

    def propose(self, known: Known) -> list[Genome]:
        """The surrogate's optimum with its neighbours, and neighbours of the best known plan."""
        surrogate = Surrogate(self.task, self.expected(known))
        near = islice(surrogate.neighbours_of_best(known), 100)
        optima = self.unknown(islice(surrogate.best(), 100), known)[: _ROUND // 2]
        return self.unknown((*optima, *near), known)[:_ROUND]

    def expected(self, known: Known) -> dict[Genome, float]:
        """Scores after fit and repair: those in `known`, and predictions for other singles."""
        space, singles = self.task.space, self._singles
        base = self.alone[space.keep]
        damages = np.array([self.alone[g] - base for g in singles])
        worst = damages[np.isfinite(damages)].max(initial=1e-9)
        damages = np.where(np.isfinite(damages), damages, 10 * worst)
        least = max(_LEAST * damages.max(), 1e-12)
        logs = np.log(np.maximum(damages, least))
        sites = np.array([np.flatnonzero(g)[0] for g in singles])
        positions = sites / max(len(space.sites) - 1, 1)
        rows = np.stack([np.ones_like(logs), logs, positions, positions * logs], 1)
        fitted = [i for i, g in enumerate(singles) if g in known]
        left = np.array([known[singles[i]] - base for i in fitted])
        errors = np.log(np.clip(left, least, 10 * damages.max())) - logs[fitted]
        predicted = base + np.exp(logs + rows @ _ridge(rows[fitted], errors))
        return {space.keep: base, **dict(zip(singles, predicted.tolist(), strict=True)), **known}


def _ridge(rows: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients of a ridge regression; all zero without rows."""
    normal = rows.T @ rows + _RIDGE * np.eye(rows.shape[1])
    return np.asarray(np.linalg.solve(normal, rows.T @ targets))
