"""Offers: the candidates of a site that are measurably faster than its block."""

import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from pydantic import BaseModel, field_serializer, field_validator
from torch import nn

from updp.blocks import Findings, Site, Unusable
from updp.blocks.reading.scaling import NotScalable
from updp.candidates.base import Candidate
from updp.candidates.drop import Drop
from updp.candidates.registry import Unknown, proposals, read_candidate
from updp.candidates.timing import Timed, time_site
from updp.errors import UserError
from updp.measure import LatencyTable
from updp.recipe import Recipe

_log = logging.getLogger(__name__)
# Begin of the reason for a site whose candidates were all timed as slower.
SLOWER = "no merged form is faster than the block"
_ALONE = "it can only be left out, and its block has a branch that merges: candidates.drop=always"


class Offer(BaseModel, frozen=True, arbitrary_types_allowed=True):
    """A candidate of a site with its costs, and the costs of the baseline's form (`keep`).

    Both forms are timed alone, outside of the model.
    """

    site: str  # name of the site
    kind: str  # class name of the site's block
    shape: tuple[int, ...]  # shape of the site's input, without the batch
    candidate: Candidate  # kind and fields of the candidate, as in a plan
    parameters: int  # number of scalar parameters, once merged
    keep_parameters: int  # the same for the baseline's form
    weights: int  # bytes of parameters and buffers in float32, once merged
    keep_weights: int  # the same for the baseline's form
    memory: int  # bytes of activations at the peak of a batch in float32, beside the site's input
    macs: int  # multiply-accumulates for one image, of all calls in a forward, once merged
    keep_macs: int  # the same for the baseline's form
    ms: float  # median latency in ms for a batch, of all calls in a forward, once merged
    keep_ms: float  # the same for the baseline's form
    speedup: float  # latency of the baseline's form over the candidate's, median
    noise_ms: float  # half of the interquartile range of the ms that the candidate saves

    @property
    def saved_ms(self) -> float:
        """Milliseconds per batch that pruning the site saves."""
        # Uses the ratio of adjacent rounds, because the machine may change between the two medians.
        return self.keep_ms * (1 - 1 / self.speedup)

    @field_validator("candidate", mode="before")
    @classmethod
    def _read_candidate(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        try:
            return read_candidate(value)
        except UserError:  # a report may read a run whose candidate kind is not registered here
            return Unknown(value)

    @field_serializer("candidate")
    def _write_candidate(self, candidate: Candidate) -> dict[str, Any]:
        return candidate.to_json()


Offers = dict[str, tuple[Offer, ...]]  # by site, the preferred one first


def make_offers(
    model: nn.Module,
    findings: Findings,
    recipe: Recipe,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Offers, list[Unusable]]:
    """Time the candidates of each site, and offer those that are faster than the block.

    The preferred candidate removes the least; among equals it is the fastest. Sites that run the
    same operators are timed once; on one device only once for all runs, unless `measure.cache`
    is off.

    Args:
        model: the baseline.
        findings: the baseline's sites and their graphs.
        recipe: which candidates are proposed, and how they are timed.
        device: the device to time on.
        tick: called after each site.

    Returns:
        The offers of each site, the preferred one first, and the sites without offers.

    Raises:
        UserError: the recipe's runtime cannot run a site.
    """
    table, batch_size = LatencyTable.open(device, recipe.measure), recipe.measure.batch_size
    offers: Offers = {}
    refused: list[Unusable] = []
    for site in findings.sites:
        traced = findings.traced(site, model)
        candidates = list(proposals(traced, recipe.candidates))
        try:
            timed = time_site(candidates, traced, recipe.measure, device, table)
            found = [_offer(site, *pair, batch_size) for pair in _preferred(candidates, timed)]
            why = _why_refused(site, timed)
        except NotScalable as error:
            found, why = [], str(error)
        if found:
            offers[site.name] = tuple(found)
        else:
            refused.append(Unusable(site.name, site.kind, why))
            _log.info("%s has no candidate: %s", site.name, why)
        tick()
    if recipe.candidates.drop == "alone":
        kept = without_lone_drops(offers)
        gone = [site for site in findings.sites if site.name in offers.keys() - kept.keys()]
        refused += [Unusable(s.name, s.kind, f"{_ALONE} ({s.why})") for s in gone]
        offers = kept
    return offers, refused


def offers_within(offers: Offers, recipe: Recipe) -> Offers:
    """Keep the offers that the recipe's budget admits; if it counts blocks, only shallower ones."""
    if recipe.candidates.follow_budget and recipe.counts_blocks:
        offers = only_shallower(offers)
        if recipe.candidates.drop is None:
            offers = without_lone_drops(offers)
    return offers


def only_shallower(offers: Offers) -> Offers:
    """Keep the offers that reduce depth, and the sites that have such offers."""
    found = {n: tuple(o for o in of if o.candidate.shallower) for n, of in offers.items()}
    return {name: of for name, of in found.items() if of}


def without_lone_drops(offers: Offers) -> Offers:
    """Remove drops of branches that do not merge, if another branch of the block does."""
    merges = {
        name
        for name, of in offers.items()
        if any(o.candidate.shallower and not _is_drop(o) for o in of)
    }
    blocks = {_block(name) for name in merges}
    beside = {name for name in offers.keys() - merges if _block(name) in blocks}
    found = {
        name: tuple(o for o in of if name not in beside or not _is_drop(o))
        for name, of in offers.items()
    }
    return {name: of for name, of in found.items() if of}


def _is_drop(offer: Offer) -> bool:
    return isinstance(offer.candidate, Drop)


def _block(site: str) -> str:
    return site.partition(":")[0]


def _why_refused(site: Site, timed: Sequence[Timed]) -> str:
    if timed:
        best = max((t.latency.speedup for t in timed), key=lambda speedup: speedup.median)
        return f"{SLOWER} (the best runs at {best.median:.2f}x, {best.low:.2f} to {best.high:.2f})"
    return site.why or "no merged form has fewer MACs than the block"


def _preferred(
    candidates: Sequence[Candidate], timed: Sequence[Timed]
) -> list[tuple[Candidate, Timed]]:
    """Keep the candidates faster than the block: lowest rank first, then fastest first.

    Speed-ups whose upper quartile reaches the best median count as equal and keep their order.
    """
    found: list[tuple[Candidate, Timed]] = []
    faster = [(c, t) for c, t in zip(candidates, timed, strict=True) if t.latency.faster]
    faster.sort(key=lambda pair: pair[0].rank)
    for _, group in groupby(faster, key=lambda pair: pair[0].rank):
        same = list(group)
        best = max(t.latency.speedup.median for _, t in same)
        found += sorted(same, key=lambda pair: pair[1].latency.speedup.high < best)
    return found


def _offer(site: Site, candidate: Candidate, timed: Timed, batch_size: int) -> Offer:
    saved = timed.latency.saved
    one, batch = site.work_for(1), site.work_for(batch_size)
    return Offer(
        site=site.name,
        kind=site.kind,
        shape=site.sample_shape,
        candidate=candidate,
        parameters=timed.parameters,
        keep_parameters=timed.keep_parameters,
        weights=timed.weights,
        keep_weights=timed.keep_weights,
        memory=timed.memory,
        macs=round(timed.macs * one),
        keep_macs=round(timed.keep_macs * one),
        ms=timed.latency.ms.median * batch,
        keep_ms=timed.keep.ms.median * batch,
        speedup=timed.latency.speedup.median,
        noise_ms=(saved.high - saved.low) / 2 * batch,
    )
