"""Schema of a finished search, `front.json`: all scored plans, their front, and the chosen one."""

import math
from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import BaseModel, model_validator

from updp.candidates import Offers
from updp.io.records import Record
from updp.measure import Timing
from updp.plan import Plan
from updp.search.score import Reference, measure_of


class ScoredPlan(BaseModel, extra="forbid", frozen=True):
    """A plan that was scored, with its cost: see `Score` and `Cost`."""

    choices: dict[str, str]
    score: float | None  # None if it was infinite
    top1: float | None  # on held-out images, see `SearchResult.reference`
    complete: bool
    fitted: float | None = None  # score after fit and repair, of plans that were refined
    fitted_top1: float | None = None
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
    def last_top1(self) -> float | None:
        """Top-1 in percent after fit and repair where there is one, else that before."""
        return self.top1 if self.fitted_top1 is None else self.fitted_top1


class SearchResult(Record):
    """All plans of a search in the order of scoring; `front` and `chosen` are indices of `points`.

    `axis` is the unit of cost of the front. `reference` says what the top-1 of plans is measured
    against: labels, or the predictions of the baseline where there are none.
    """

    FILE: ClassVar[str] = "search/front.json"
    axis: str
    budget: str
    searcher: str
    baseline: ScoredPlan
    points: tuple[ScoredPlan, ...]
    front: tuple[int, ...]
    chosen: int
    reference: Reference = "labels"

    @property
    def measure(self) -> str:
        """What the figures called `top1` are."""
        return measure_of(self.reference)

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
