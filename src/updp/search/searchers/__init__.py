"""Ways to search, by name."""

from updp.search.searchers.base import Known, Searcher, SearchTask
from updp.search.searchers.bayes import Bayes
from updp.search.searchers.genetic import Genetic
from updp.search.searchers.greedy import Greedy
from updp.search.searchers.milp import Milp
from updp.search.searchers.random import Random

SEARCHERS: dict[str, type[Searcher]] = {s.name: s for s in (Bayes, Genetic, Greedy, Milp, Random)}

__all__ = ["SEARCHERS", "Known", "SearchTask", "Searcher"]
