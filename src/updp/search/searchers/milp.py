"""The exact optimum of a model of the score, scored, learnt from, and so on.

Every round fits the surrogate anew. Half of the proposals are its best plan within the limits, by
integer programming, and that plan's neighbours; half are the most promising neighbours of the best
plan known, which find what the model cannot say.
"""

from updp.search.searchers.base import Known, Searcher
from updp.search.searchers.surrogate import Surrogate, best_known
from updp.search.space import Genome

_LEVELS = 8  # of the front that is scored first


class Milp(Searcher):
    """Additive surrogate, solved exactly, refined by what it got wrong."""

    name = "milp"

    def propose(self, known: Known) -> list[Genome]:
        """First the surrogate's front over all costs, then its optima and their neighbours."""
        surrogate = Surrogate(self.task, known)
        singles = {self.task.space.keep, *self.task.space.singles()}
        front = surrogate.front(_LEVELS) if known.keys() <= singles else ()
        if first := self.unknown(front, known):
            return first
        best = best_known(self.task, known)
        near = list(surrogate.neighbours(best)) if best is not None else []
        optima = list(surrogate.best())
        half = self.unknown(optima, known)[: self.task.settings.population // 2]
        return self.filled((*half, *near, *optima), known)
