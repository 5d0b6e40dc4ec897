"""Stage 2: subnet search."""

from updp.search.fitted_scorer import FittedScorer
from updp.search.front import pareto, within
from updp.search.integer_program import Limits
from updp.search.limits import limits_of
from updp.search.loop import complete, refine, search
from updp.search.score import Score
from updp.search.scorers import Scorer
from updp.search.searchers import SEARCHERS, Task
from updp.search.space import Choice, Cost, Option, Space
from updp.search.store import Evaluated, Store

__all__ = [
    "SEARCHERS",
    "Choice",
    "Cost",
    "Evaluated",
    "FittedScorer",
    "Limits",
    "Option",
    "Score",
    "Scorer",
    "Space",
    "Store",
    "Task",
    "complete",
    "limits_of",
    "pareto",
    "refine",
    "search",
    "within",
]
