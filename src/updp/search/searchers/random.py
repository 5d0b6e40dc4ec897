"""Random search, the reference for all other searchers."""

from updp.search.searchers.base import Known, Searcher
from updp.search.space import Genome


class Random(Searcher):
    """Prunes sites in random order, to random candidates, until the limits are met."""

    name = "random"

    def preliminaries(self) -> list[Genome]:
        """No plans: random search does not learn from scores."""
        return []

    def propose(self, known: Known) -> list[Genome]:
        """The next random plans."""
        return self.filled((), known)
