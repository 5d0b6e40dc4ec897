"""Which candidates a site is offered: those that are measurably faster than its block."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import fx, nn

from updp import recipe as recipes
from updp.blocks import Findings, LinearStep, Site, Unusable
from updp.blocks.extract import Replacement, extract, isolate
from updp.candidates.base import Candidate
from updp.candidates.inherit import Inherit, baseline_macs, propose
from updp.errors import UserError, reason
from updp.measure import Latency, compare_modules, count_parameters
from updp.plan import Plan

# A candidate, its parameters, and the latencies of its merged form and of the block.
Timed = tuple[Inherit, int, Latency, Latency]


@dataclass(frozen=True)
class Offer:
    """A candidate of a site with its cost.

    MACs are for one image, milliseconds for one batch; `keep` is the baseline's form.
    """

    site: str
    kind: str
    shape: tuple[int, ...]
    candidate: Candidate
    parameters: int
    macs: int
    keep_macs: int
    ms: float
    keep_ms: float
    speedup: float

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


def from_json(data: dict[str, Any]) -> Candidate:
    """The candidate that `Candidate.to_json` described. Raises UserError for an unknown kind."""
    if data.get("kind") != Inherit.kind:
        raise UserError(
            f"candidate kind {data.get('kind')!r} is unknown: there is {Inherit.kind!r}"
        )
    try:
        return Inherit.from_json(data)
    except (KeyError, TypeError) as error:
        raise UserError(f"candidate {data} is not understood: {reason(error)}") from error


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


def choose(
    model: nn.Module,
    findings: Findings,
    recipe: recipes.Recipe,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Offer], list[Unusable]]:
    """One candidate for each site, and the sites that have none.

    Of the faster ones it is the one that shrinks fewest kernels, and of those the fastest. Sites
    of one structure and shape are timed once.
    """
    timed: dict[str, list[Timed]] = {}
    offers: dict[str, Offer] = {}
    refused: list[Unusable] = []
    for site in findings.sites:
        tick()
        key = _signature(site)
        if key not in timed:
            timed[key] = _time(model, findings.graphs[site.block], site, recipe, device)
        linears = tuple(s.name for s in site.branch.linears)
        options = [(_renamed(c, linears), p, new, old) for c, p, new, old in timed[key]]
        if not options:
            reason = "no merged form has fewer MACs than the block"
            refused.append(Unusable(site.name, site.kind, reason))
            continue
        chosen = _best(options)
        if chosen is None:
            best = max(latency.speedup.median for _, _, latency, _ in options)
            reason = f"no merged form is faster than the block (the best runs at {best:.2f}x)"
            refused.append(Unusable(site.name, site.kind, reason))
            continue
        candidate, parameters, latency, keep = chosen
        offers[site.name] = Offer(
            site.name,
            site.kind,
            site.shape_in[1:],
            candidate,
            parameters,
            candidate.macs(site),
            baseline_macs(site),
            latency.ms.median,
            keep.ms.median,
            latency.speedup.median,
        )
    return offers, refused


def _best(options: list[Timed]) -> Timed | None:
    """Of the least shrunk that are faster than the block, the fastest; of equals, the first."""
    for _, group in groupby(options, key=lambda option: len(option[0].shrunk)):
        faster = [option for option in group if option[2].faster]
        if faster:
            fastest = max(option[2].speedup.median for option in faster)
            return next(option for option in faster if option[2].speedup.high >= fastest)
    return None


def _time(
    model: nn.Module,
    graph: fx.Graph,
    site: Site,
    recipe: recipes.Recipe,
    device: torch.device,
) -> list[Timed]:
    block = model.get_submodule(site.block)
    settings = recipe.candidates
    # A larger form may win on one clock and lose on the next.
    limit = baseline_macs(site)
    candidates = [
        c
        for c in propose(site, end_activation=settings.end_activation, linearise=settings.linearise)
        if c.macs(site) <= limit
    ]
    # The smallest of each degree of shrinking; a table of all cuts would take minutes. Of those
    # that merge to the same size the first will do: a clock could only toss a coin.
    few: list[Inherit] = []
    for _, group in groupby(candidates, key=lambda c: len(c.shrunk)):
        sizes = {(c.macs(site), len(c.segments)): c for c in reversed(list(group))}
        few += sorted(sizes.values(), key=lambda c: c.macs(site))[:2]
    few = few[: settings.timed]
    if not few:
        return []
    modules: dict[str, nn.Module] = {}
    for candidate in few:
        part = merged_part(candidate, site, block, graph, device)
        modules[candidate.label] = isolate(block, graph, part).eval()
    keep = extract(block, graph, site.region.entry, site.region.exit)
    everything = {"keep": copy.deepcopy(keep).eval(), **modules}
    x = torch.randn(recipe.measure.batch_size, *site.shape_in[1:], device=device)
    for patience in (1, 2, 4):  # a busy machine is asked again
        rounds = patience * recipe.measure.rounds
        times = compare_modules(everything, x, rounds=rounds, round_seconds=0.005)
        if not any(times[c.label].undecided for c in few):
            break
    return [(c, count_parameters(modules[c.label]), times[c.label], times["keep"]) for c in few]


def merged_part(
    candidate: Candidate, site: Site, block: nn.Module, graph: fx.Graph, device: torch.device
) -> Replacement:
    """The candidate's merged form with untrained BatchNorms, ready to stand in the block."""
    merged = candidate.build(site, block, graph).merged()
    return merged.replacement(site, torch.float32, device)


def _signature(site: Site) -> str:
    """What decides a site's latency: its operators and shapes, not its names."""
    steps = [
        (s.kernel, s.stride, s.padding, s.dilation, s.groups, tuple(s.weight.shape))
        if isinstance(s, LinearStep)
        else type(s).__name__
        for s in site.branch.steps
    ]
    skip = None if site.skip is None else [type(s).__name__ for s in site.skip.steps]
    return str((steps, skip, site.region.add, site.kind, site.shape_in[1:], site.shape_out[1:]))


def _renamed(candidate: Inherit, linears: tuple[str, ...]) -> Inherit:
    """The same candidate on a site whose operators have other names."""
    old = [name for segment in candidate.segments for name in segment]
    new: Mapping[str, str] = dict(zip(old, linears, strict=True))
    return Inherit(
        tuple(tuple(new[n] for n in segment) for segment in candidate.segments),
        tuple(new[n] for n in candidate.shrunk),
        candidate.end_activation,
        candidate.linearise,
    )
