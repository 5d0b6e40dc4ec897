"""Stage 2: subnet search."""

from updp.search.fitted import FittedScorer
from updp.search.front import pareto, within
from updp.search.program import Limits
from updp.search.run import complete, refine, search
from updp.search.score import Score
from updp.search.scorer import Scorer
from updp.search.searchers import SEARCHERS, Task
from updp.search.space import Choice, Cost, Option, Space
from updp.search.store import Evaluated, Store
from updp.search.target import limits_of

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
