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
    """A plan that was scored, with its cost: see `Score` and `Cost`."""

    choices: dict[str, str]
    score: float | None  # None if it was infinite
    # On held-out images, see `SearchResult.metric`.
    metric: float | None = Field(validation_alias=AliasChoices("metric", "top1"))
    complete: bool
    fitted: float | None = None  # score after fit and repair, of plans that were refined
    fitted_metric: float | None = Field(
        None, validation_alias=AliasChoices("fitted_metric", "fitted_top1")
    )
    latency: float  # predicted
    noise: float
    measured: Timing | None = None  # ms for a batch, of plans that were timed end to end
    macs: float
    parameters: float
    memory: float
    blocks: int

    @property
    def last_score(self) -> float:
        """The score after fit and repair where there is one, else that before; None is infinity."""
        score = self.score if self.fitted is None else self.fitted
        return math.inf if score is None else score

    @property
    def last_metric(self) -> float | None:
        """The metric after fit and repair where there is one, else that before."""
        return self.metric if self.fitted_metric is None else self.fitted_metric


class SearchResult(Record):
    """All plans of a search in the order of scoring; `front` and `chosen` are indices of `points`.

    `axis` is the unit of cost of the front, `metric` what plans are measured by beside their score.
    """

    FILE: ClassVar[str] = "search/front.json"
    axis: str
    budget: str
    searcher: str
    baseline: ScoredPlan
    points: tuple[ScoredPlan, ...]
    front: tuple[int, ...]
    chosen: int
    metric: Metric = CLASSIFICATION.metric

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
