"""What the report reads of a run directory's files; fields that it does not show are left out.

Milliseconds are of a batch, MACs of one image, errors relative.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class About(BaseModel):
    """`run.json`."""

    model: str = ""
    weights: str = ""
    teacher: str = ""
    data: str = ""
    classes: list[str] = []
    input_shape: list[int] = []
    device: str = ""
    threads: int = 0
    versions: dict[str, str] = {}
    command: list[str] = []


class OfferRow(BaseModel):
    """A candidate of a site, with its cost beside the baseline's (`keep`)."""

    kind: str
    shape: list[int]
    candidate: dict[str, Any]
    parameters: int
    keep_parameters: int
    macs: int
    keep_macs: int
    ms: float
    keep_ms: float


class SiteRow(BaseModel):
    """A site with what it may become."""

    site: str
    offers: list[OfferRow]


class Unusable(BaseModel):
    """A block that cannot be pruned."""

    name: str
    kind: str
    reason: str


class Whole(BaseModel):
    """The baseline's latency in ms for a batch."""

    ms: float


class Survey(BaseModel):
    """`sites/sites.json`."""

    sites: list[SiteRow]
    unusable: list[Unusable] = []
    baseline: Whole
    in_place: float = 1.0


class FitRow(BaseModel):
    """A row of `subnet/fit.json`: squared error over the target's variance.

    `strength` is that of the ridge; where it is None the prior was kept.
    """

    site: str
    candidate: str
    error: float
    prior_error: float
    strength: float | None = None


class CheckRow(BaseModel):
    """A row of `merge/checks.json`; `where` is empty for the logits."""

    where: str
    dtype: str
    source: str
    error: float
    rounding: float = 0.0
