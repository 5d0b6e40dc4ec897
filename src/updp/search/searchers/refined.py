"""Plans as stage 3 will make them: fitted one site after another, the kept branches repaired.

A repair makes good most of what an early site does, and little of what a late one does: what a
candidate does alone says neither. So some candidates are fitted and repaired alone, and a line in
logarithms says of the others what would be left of theirs:

    log(left) = b0 + b1 log(alone) + b2 t + b3 t log(alone),    t: the place of the site, 0 to 1.

The integer program then proposes plans; each that was fitted puts the model right.
"""

from itertools import islice

import numpy as np
from numpy.typing import NDArray

from updp.search.searchers.base import Known, Searcher, Task
from updp.search.searchers.surrogate import Surrogate, best_known
from updp.search.space import Genome

_ROUND = 4  # plans proposed at once
_SINGLES = 3  # one of so many is a candidate alone
_RIDGE = 0.1  # towards what a candidate does alone
_LEAST = 1e-6  # of the worst: a damage, for its logarithm


class Refined(Searcher):
    """Begins where another search ended, with what it found out: `alone`, its scores."""

    name = "refined"

    def __init__(self, task: Task, alone: Known) -> None:
        super().__init__(task)
        self.alone = alone

    def preliminaries(self) -> list[Genome]:
        """Some candidates alone, from all over the network, and the best plan known so far."""
        singles = [g for g in self.task.space.singles() if g in self.alone]
        count = min(len(singles), self.task.settings.refined // _SINGLES)
        places = np.linspace(0, len(singles) - 1, count).round().astype(int)
        best = best_known(self.task, self.alone)
        some = [singles[place] for place in places]
        return list(dict.fromkeys(some if best is None else [*some, best]))

    def propose(self, known: Known) -> list[Genome]:
        """The model's optimum with its neighbours, and the neighbours of the best plan known."""
        surrogate = Surrogate(self.task, self.expected(known))
        best = best_known(self.task, known)
        near = surrogate.neighbours(best) if best is not None else iter(())
        optima = self.unknown(islice(surrogate.best(), 100), known)[: _ROUND // 2]
        return self.unknown((*optima, *islice(near, 100)), known)[:_ROUND]

    def expected(self, known: Known) -> dict[Genome, float]:
        """Scores after fit and repair: known ones, and of each further candidate alone the line's.

        `known` holds scores after fit and repair.
        """
        space = self.task.space
        base = self.alone[space.keep]
        singles = [g for g in space.singles() if g in self.alone]
        damages = np.array([self.alone[g] - base for g in singles])
        worst = damages[np.isfinite(damages)].max(initial=1e-9)
        damages = np.where(np.isfinite(damages), damages, 10 * worst)
        least = max(_LEAST * damages.max(), 1e-12)
        logs = np.log(np.maximum(damages, least))
        places = np.array([np.flatnonzero(g)[0] for g in singles]) / max(len(space.sites) - 1, 1)
        rows = np.stack([np.ones_like(logs), logs, places, places * logs], 1)
        told = [i for i, g in enumerate(singles) if g in known]
        left = np.array([known[singles[i]] - base for i in told])
        wrong = np.log(np.clip(left, least, 10 * damages.max())) - logs[told]
        line = _ridge(rows[told], wrong)
        guessed = base + np.exp(logs + rows @ line)
        return {space.keep: base, **dict(zip(singles, guessed.tolist(), strict=True)), **known}


def _ridge(rows: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of all zeros where there is nothing to learn from."""
    normal = rows.T @ rows + _RIDGE * np.eye(rows.shape[1])
    return np.asarray(np.linalg.solve(normal, rows.T @ wanted))
