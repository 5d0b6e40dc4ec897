"""Search for a plan: the space of plans, their scores, the searchers, and the Pareto front.

Nothing here depends on stages: `loop.search` asks a searcher for plans, scores and stores them.
"""

from updp.search.choice import choose_plan, finalists, pick, within_latency
from updp.search.front import pareto, within
from updp.search.latency_correction import latency_factor, prediction_is_off, with_measured_savings
from updp.search.limits import limits_of
from updp.search.loop import refine, score_missing, search
from updp.search.outcome import ScoredPlan, SearchResult
from updp.search.score import Score
from updp.search.scorers import FittedScorer, Scorer
from updp.search.scores import Evaluated, ScoreFile, Scores
from updp.search.searchers import SEARCHERS, SearchTask
from updp.search.space import Cost, Limits, Option, SiteOptions, Space
from updp.search.survey import BaselineCost, Survey, SurveyedSite

__all__ = [
    "SEARCHERS",
    "BaselineCost",
    "Cost",
    "Evaluated",
    "FittedScorer",
    "Limits",
    "Option",
    "Score",
    "ScoreFile",
    "ScoredPlan",
    "Scorer",
    "Scores",
    "SearchResult",
    "SearchTask",
    "SiteOptions",
    "Space",
    "Survey",
    "SurveyedSite",
    "choose_plan",
    "finalists",
    "latency_factor",
    "limits_of",
    "pareto",
    "pick",
    "prediction_is_off",
    "refine",
    "score_missing",
    "search",
    "with_measured_savings",
    "within",
    "within_latency",
]
