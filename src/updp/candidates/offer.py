"""Candidates with their costs, and which of a model's sites they are for."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from updp.blocks import Findings
from updp.candidates.base import Candidate
from updp.candidates.drop import Drop
from updp.candidates.registry import from_json
from updp.errors import UserError
from updp.plan import Plan


@dataclass(frozen=True)
class Offer:
    """A candidate of a site with its cost.

    MACs are for one image, milliseconds for one batch; `keep` is the baseline's form. `noise_ms` is
    half of the interquartile range of what the candidate saves. `weights` are bytes of parameters
    and buffers; `memory` is what a batch takes at the site's worst moment beside its input, in
    bytes. Both are of float32.
    """

    site: str
    kind: str
    shape: tuple[int, ...]
    candidate: Candidate
    parameters: int
    keep_parameters: int
    weights: int
    keep_weights: int
    memory: int
    macs: int
    keep_macs: int
    ms: float
    keep_ms: float
    speedup: float
    noise_ms: float

    @property
    def saved_ms(self) -> float:
        """Milliseconds that a batch takes less when the site is pruned."""
        return self.keep_ms - self.ms

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` makes an equal offer."""
        return {**vars(self), "shape": list(self.shape), "candidate": self.candidate.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Offer:
        """The inverse of `to_json`."""
        return cls(
            **{
                **data,
                "shape": tuple(data["shape"]),
                "candidate": from_json(data["candidate"]),
            }
        )


Offers = dict[str, tuple[Offer, ...]]  # of each site, the preferred one first


def shallower(offers: Offers) -> Offers:
    """Those that take depth away, and the sites that have one."""
    found = {n: tuple(o for o in of if o.candidate.shallower) for n, of in offers.items()}
    return {name: of for name, of in found.items() if of}


def dropped_alone(offers: Offers) -> Offers:
    """All but what leaves out a branch that does not merge, where another of its block does."""
    merges = {
        name
        for name, of in offers.items()
        if any(o.candidate.shallower and not _is_drop(o) for o in of)
    }
    blocks = {_block(name) for name in merges}
    found = {
        name: tuple(o for o in of if not _is_drop(o))
        if name not in merges and _block(name) in blocks
        else of
        for name, of in offers.items()
    }
    return {name: of for name, of in found.items() if of}


def _is_drop(offer: Offer) -> bool:
    return isinstance(offer.candidate, Drop)


def _block(site: str) -> str:
    return site.partition(":")[0]


def planned(plan: Plan, findings: Findings) -> dict[str, tuple[Candidate, ...]]:
    """The plan's candidate for each site that it prunes.

    Raises UserError for a plan that does not fit the model, as one written by hand may not.
    """
    sites = {site.name: site for site in findings.sites}
    candidates: dict[str, tuple[Candidate, ...]] = {}
    for name, label in plan.choices.items():
        if name not in sites:
            raise UserError(f"the plan prunes {name!r}, which is no site of this model")
        if name not in plan.candidates:
            raise UserError(f"the plan names no candidate for {name!r}")
        candidate = from_json(plan.candidates[name])
        if candidate.label != label or not candidate.fits(sites[name]):
            raise UserError(f"the plan's candidate {label!r} does not fit the site {name!r}")
        candidates[name] = (candidate,)
    return candidates


def selected(findings: Findings, include: Sequence[str], exclude: Sequence[str]) -> Findings:
    """Only the sites that a glob of `include` (all, when empty) and none of `exclude` matches.

    Raises UserError for a glob that matches no site.
    """
    names = [site.name for site in findings.sites]
    for glob in (*include, *exclude):
        if not fnmatch.filter(names, glob):
            raise UserError(f"{glob!r} matches no site: `updp inspect` lists their names")
    sites = tuple(
        site
        for site in findings.sites
        if (not include or any(fnmatch.fnmatchcase(site.name, g) for g in include))
        and not any(fnmatch.fnmatchcase(site.name, g) for g in exclude)
    )
    return replace(findings, sites=sites)
