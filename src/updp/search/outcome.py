"""Schema of a finished search, `front.json`: all scored plans, their front, and the chosen one."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import AliasChoices, BaseModel, Field, model_validator

from updp.candidates import Offers
from updp.io.records import Record
from updp.measure import Timing
from updp.plan import Plan
from updp.tasks import CLASSIFICATION, Metric


class ScoredPlan(BaseModel, extra="forbid", frozen=True):
    """A plan that was scored, with its cost."""

    choices: dict[str, str]  # label of the candidate, by pruned site
    score: float | None  # mean loss on held-out images; null if infinite, or never scored
    # Value on held-out images of the metric that `front.json` names; null if never scored.
    metric: float | None = Field(validation_alias=AliasChoices("metric", "top1"))
    complete: bool  # whether all held-out images were scored; else score and metric are estimates
    refined: bool = False  # whether it was scored after fit and repair, too
    fitted: float | None = None  # score after fit and repair; null if infinite, or not refined
    # Value of the metric after fit and repair, of plans that were refined.
    fitted_metric: float | None = Field(
        None, validation_alias=AliasChoices("fitted_metric", "fitted_top1")
    )
    latency: float  # ms for a batch, predicted from what each candidate saves
    noise: float  # half of the interquartile range of the predicted latency, ms
    # In ms for a batch: the baseline's over the speed-up measured end to end; null if not timed.
    measured: Timing | None = None
    macs: float  # multiply-accumulates for one image
    parameters: float  # number of scalar parameters
    memory: float  # bytes at the peak, of weights and of activations for a batch
    blocks: int  # number of pruned sites whose candidates reduce depth

    @model_validator(mode="before")
    @classmethod
    def _was_refined(cls, data: Any) -> Any:
        """Records of earlier versions say it by the score alone."""
        if isinstance(data, dict) and "refined" not in data:
            return {**data, "refined": data.get("fitted") is not None}
        return data

    @property
    def last_score(self) -> float:
        """The score after fit and repair of a refined plan, else that before; None is infinity."""
        score = self.fitted if self.refined else self.score
        return math.inf if score is None else score

    @property
    def last_metric(self) -> float | None:
        """The metric after fit and repair where there is one, else that before."""
        return self.metric if self.fitted_metric is None else self.fitted_metric


class SearchResult(Record):
    """All plans of a search in the order of scoring, their front, and the chosen one."""

    FILE: ClassVar[str] = "search/front.json"
    axis: str  # unit of cost of the front: the first that the budget limits, else `macs`
    budget: str  # the budget that was searched for, as text
    searcher: str  # name of the searcher
    baseline: ScoredPlan  # the plan that prunes nothing
    points: tuple[ScoredPlan, ...]  # all scored plans, in the order of scoring
    # Indices of `points` that no other one beats in both score and cost, costliest first.
    front: tuple[int, ...]
    chosen: int  # index of the chosen plan in `points`
    metric: Metric = CLASSIFICATION.metric  # measure of plans beside their score

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("reference") == "baseline":
            return {**data, "metric": CLASSIFICATION.agreement}
        return data

    @model_validator(mode="after")
    def _indices_exist(self) -> Self:
        if not all(0 <= index < len(self.points) for index in (*self.front, self.chosen)):
            raise ValueError("front: no such point")
        return self

    @property
    def plan(self) -> ScoredPlan:
        """The chosen point."""
        return self.points[self.chosen]

    def make_plan(self, offers: Offers, budget: str, hashes: Mapping[str, str]) -> Plan:
        """The chosen point as a `Plan`, with the candidates that `offers` have of its labels."""
        choices = self.plan.choices
        labels = {name: {o.candidate.label: o.candidate for o in offers[name]} for name in choices}
        candidates = {name: labels[name][label].to_json() for name, label in choices.items()}
        return Plan(choices=choices, candidates=candidates, budget=budget, hashes=hashes)
