"""Stage 2: subnet search."""

from updp.search.budget import Cost, Costs
from updp.search.genetic import Evaluated, search
from updp.search.score import Scorer

__all__ = ["Cost", "Costs", "Evaluated", "Scorer", "search"]
