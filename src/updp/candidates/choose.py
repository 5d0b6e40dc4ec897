"""Which candidates a site is offered: those that are measurably faster than its block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import fx, nn

from updp import recipe as recipes
from updp.blocks import Findings, LinearStep, Site, Unusable
from updp.blocks.extract import Replacement, extract, isolate
from updp.candidates.base import Candidate
from updp.candidates.inherit import Inherit, baseline_macs, propose
from updp.measure import Latency, compare_modules, count_parameters


@dataclass(frozen=True)
class Offer:
    """A candidate of a site with its cost; MACs for one image, latency against the block's."""

    site: str
    candidate: Inherit
    macs: int
    keep_macs: int
    parameters: int
    latency: Latency
    keep_latency: Latency

    @property
    def saved_ms(self) -> float:
        """Milliseconds that a batch takes less when the site is pruned."""
        return self.keep_latency.ms.median - self.latency.ms.median


def choose(
    model: nn.Module,
    findings: Findings,
    recipe: recipes.Recipe,
    device: torch.device,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Offer], list[Unusable]]:
    """One candidate for each site, and the sites that have none.

    Of the faster ones it is the one that shrinks fewest kernels, and of those the fastest. Sites
    of one structure and shape are timed once.
    """
    timed: dict[str, list[tuple[Inherit, int, Latency, Latency]]] = {}
    offers: dict[str, Offer] = {}
    refused: list[Unusable] = []
    for done, site in enumerate(findings.sites):
        tick(done, len(findings.sites))
        key = _signature(site)
        if key not in timed:
            timed[key] = _time(model, findings.graphs[site.block], site, recipe, device)
        linears = tuple(s.name for s in site.branch.linears)
        options = [(_renamed(c, linears), *rest) for c, *rest in timed[key]]
        if not options:
            reason = "no merged form is smaller than twice the block"
            refused.append(Unusable(site.name, site.kind, reason))
            continue
        chosen = _best(options)
        if chosen is None:
            best = max(latency.speedup.median for _, _, latency, _ in options)
            reason = f"no merged form is faster than the block (the best runs at {best:.2f}x)"
            refused.append(Unusable(site.name, site.kind, reason))
            continue
        candidate, parameters, latency, keep = chosen
        macs, before = candidate.macs(site), baseline_macs(site)
        offers[site.name] = Offer(site.name, candidate, macs, before, parameters, latency, keep)
    return offers, refused


def _best(options: list) -> tuple[Inherit, int, Latency, Latency] | None:
    for _, group in groupby(options, key=lambda option: len(option[0].shrunk)):
        faster = [option for option in group if option[2].faster]
        if faster:
            return min(faster, key=lambda option: option[2].ms.median)
    return None


def _time(
    model: nn.Module,
    graph: fx.Graph,
    site: Site,
    recipe: recipes.Recipe,
    device: torch.device,
) -> list[tuple[Inherit, int, Latency, Latency]]:
    block = model.get_submodule(site.block)
    settings = recipe.candidates
    limit = 2 * baseline_macs(site)
    candidates = [
        c
        for c in propose(site, end_activation=settings.end_activation, linearise=settings.linearise)
        if c.macs(site) <= limit
    ]
    # The smallest of each degree of shrinking; a table of all cuts would take minutes.
    few: list[Inherit] = []
    for _, group in groupby(candidates, key=lambda c: len(c.shrunk)):
        few += list(group)[:2]
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
    times = compare_modules(everything, x, rounds=recipe.measure.rounds, round_seconds=0.005)
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
