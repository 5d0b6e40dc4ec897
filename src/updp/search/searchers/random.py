"""Plans at random: what every other searcher has to beat."""

from updp.search.searchers.base import Known, Searcher
from updp.search.space import Genome


class Random(Searcher):
    """Prunes sites in random order, to random candidates, until the limits are met."""

    name = "random"
    learns_from_singles = False

    def propose(self, known: Known) -> list[Genome]:
        """The next ones of an endless row."""
        return self.filled((), known)
