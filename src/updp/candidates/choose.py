"""Which candidates a site is offered: those that are measurably faster than its block."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx, nn

from updp import recipe as recipes
from updp.blocks import Findings, LinearStep, Site, Unusable
from updp.blocks.extract import extract, isolate
from updp.candidates.base import Candidate
from updp.candidates.drop import Drop
from updp.candidates.kinds import proposals
from updp.candidates.offer import Offer
from updp.measure import Latency, compare_modules, count_macs, count_parameters

_ALONE = "it can only be left out, and its block has a branch that merges: candidates.drop=always"


@dataclass(frozen=True)
class _Timed:
    """A candidate's merged form on the clock, by its place among the site's proposals."""

    place: int
    rank: int
    parameters: int
    macs: int
    keep_macs: int
    latency: Latency
    keep: Latency


def choose(
    model: nn.Module,
    findings: Findings,
    recipe: recipes.Recipe,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
) -> tuple[dict[str, tuple[Offer, ...]], list[Unusable]]:
    """The candidates of each site, the preferred one first, and the sites that have none.

    Only those that are faster than the block are offered. Preferred is the one that takes least
    away, and of those the fastest. Sites of one structure and shape are timed once.
    """
    timed: dict[str, list[_Timed]] = {}
    offers: dict[str, tuple[Offer, ...]] = {}
    refused: list[Unusable] = []
    for site in findings.sites:
        tick()
        block, graph = model.get_submodule(site.block), findings.graphs[site.block]
        candidates = list(proposals(site, block, graph, recipe.candidates))
        key = _signature(site, candidates)
        if key not in timed:
            timed[key] = _time(candidates, site, block, graph, recipe, device)
        found = [_offer(site, candidates[t.place], t) for t in _preferred(timed[key])]
        if found:
            offers[site.name] = tuple(found)
        else:
            refused.append(Unusable(site.name, site.kind, _why(site, timed[key])))
    if recipe.candidates.drop == "alone":
        _refuse_drops(findings, offers, refused)
    return offers, refused


def _refuse_drops(
    findings: Findings, offers: dict[str, tuple[Offer, ...]], refused: list[Unusable]
) -> None:
    """Take back what only leaves out a branch, where another branch of its block merges."""
    dropped = {n for n, found in offers.items() if isinstance(found[0].candidate, Drop)}
    merging = {s.block for s in findings.sites if s.name in offers.keys() - dropped}
    for site in findings.sites:
        if site.name in dropped and site.block in merging:
            del offers[site.name]
            refused.append(Unusable(site.name, site.kind, f"{_ALONE} ({site.why})"))


def _why(site: Site, timed: list[_Timed]) -> str:
    if timed:
        best = max(t.latency.speedup.median for t in timed)
        return f"no merged form is faster than the block (the best runs at {best:.2f}x)"
    return site.why or "no merged form has fewer MACs than the block"


def _preferred(timed: list[_Timed]) -> list[_Timed]:
    """Those that are faster than the block: least taken away first, then fastest.

    Speed-ups within the best one's quartiles count as equal; of equals the first proposed is first.
    """
    found: list[_Timed] = []
    faster = sorted((t for t in timed if t.latency.faster), key=lambda t: t.rank)
    for _, group in groupby(faster, key=lambda t: t.rank):
        same = list(group)
        best = max(t.latency.speedup.median for t in same)
        same.sort(key=lambda t: (t.latency.speedup.high < best, t.place))
        found += same
    return found


def _time(
    candidates: list[Candidate],
    site: Site,
    block: nn.Module,
    graph: fx.Graph,
    recipe: recipes.Recipe,
    device: torch.device,
) -> list[_Timed]:
    if not candidates:
        return []
    region = site.region
    keep = extract(block, graph, region.entry, region.exit, region.extras)
    modules = {"keep": copy.deepcopy(keep).eval()}
    for i, candidate in enumerate(candidates):
        form = candidate.build(site, block, graph).eval()
        part = form.merged().replacement(site, torch.float32, device)
        modules[str(i)] = copy.deepcopy(isolate(block, graph, part)).eval()
    one = inputs(site, 1, device)
    macs = {name: count_macs(module, *one) * site.calls for name, module in modules.items()}
    batch = inputs(site, recipe.measure.batch_size, device)
    times: dict[str, Latency] = {}
    asked = modules
    for rounds in (3, recipe.measure.rounds, 2 * recipe.measure.rounds):
        times |= compare_modules(asked, *batch, rounds=rounds, round_seconds=0.005)
        unsure = {n: m for n, m in modules.items() if n != "keep" and times[n].undecided}
        if not unsure:
            break
        asked = {"keep": modules["keep"], **unsure}  # a busy machine is asked again
    return [
        _Timed(
            i,
            candidate.rank,
            count_parameters(modules[str(i)]),
            macs[str(i)],
            macs["keep"],
            times[str(i)],
            times["keep"],
        )
        for i, candidate in enumerate(candidates)
    ]


def inputs(site: Site, count: int, device: torch.device) -> tuple[Any, ...]:
    """Random values for the site's entry, and its extras, for `count` images."""
    images = site.shape_in[0]  # of the example; windows may be several to an image

    def repeated(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) == images:
            return value[:1].expand(count, *value.shape[1:]).clone()
        return value

    x = torch.randn(count, *site.shape_in[1:], device=device)
    return (x, *map(repeated, site.extras))


def _offer(site: Site, candidate: Candidate, timed: _Timed) -> Offer:
    return Offer(
        site.name,
        site.kind,
        site.shape_in[1:],
        candidate,
        timed.parameters,
        timed.macs,
        timed.keep_macs,
        timed.latency.ms.median * site.calls,
        timed.keep.ms.median * site.calls,
        timed.latency.speedup.median,
    )


def _signature(site: Site, candidates: list[Candidate]) -> str:
    """What decides a site's latency: its operators and shapes, not its names."""
    chains = [c for c in (site.branch, site.skip, *site.paths) if c is not None]
    steps = [
        (s.kernel, s.stride, s.padding, s.dilation, s.groups, s.shape)
        if isinstance(s, LinearStep)
        else type(s).__name__
        for chain in chains
        for s in chain.steps
    ]
    kinds = [(c.kind, c.rank) for c in candidates]
    name = "" if site.branch is not None else site.name.partition(":")[2]
    shapes = site.shape_in[1:], site.shape_out[1:]
    return str((steps, kinds, site.region.add, site.kind, name, shapes))
