"""Search by integer programming: optimise a surrogate of the score, score its optimum, refit it.

Half of the proposals of a round are the surrogate's best plan within the limits and its
neighbours. The other half are the most promising neighbours of the best known plan, which find
effects that the surrogate cannot model.
"""

from updp.search.searchers.base import Known, Searcher
from updp.search.searchers.surrogate import Surrogate
from updp.search.space import Genome


class Milp(Searcher):
    """An additive surrogate, solved exactly and refitted every round."""

    name = "milp"

    def propose(self, known: Known) -> list[Genome]:
        """First the surrogate's front over all costs, then its optima and their neighbours."""
        surrogate = Surrogate(self.task, known)
        if first := self.unknown(surrogate.opening(known), known):
            return first
        optima = list(surrogate.best())
        half = self.unknown(optima, known)[: self.task.settings.population // 2]
        return self.filled((*half, *surrogate.neighbours_of_best(known), *optima), known)
