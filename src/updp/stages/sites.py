"""What a run may prune, found and timed once: the offers of each site and the space of plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks import Findings
from updp.candidates import Offer, Offers, choose, dropped_alone, shallower
from updp.io.files import read_json
from updp.measure import compare_modules, count_macs, count_parameters, live_at, peak_memory
from updp.recipe import MeasureSettings, Recipe
from updp.search import Choice, Option, Space
from updp.supernet import Supernet
from updp.supernet.timing import time_plans

WHOLE_STEPS = 3  # of a survey, beside one for each site


def survey(
    model: nn.Module,
    copied: Callable[[], tuple[nn.Module, Findings]],
    findings: Findings,
    recipe: Recipe,
    shape: tuple[int, ...],
    device: torch.device,
    tick: Callable[[], None],
) -> dict[str, Any]:
    """Plain data, for `sites.json`: what each site may become, why others may not, the baseline.

    `shape` is an image's, (C, H, W); `copied` gives a copy of the model to rewrite. `tick` is
    called after each site and `WHOLE_STEPS` times more. Raises UserError where the runtime of the
    recipe does not run the model.
    """
    offers, refused = choose(model, findings, recipe, device, tick)
    measure = recipe.measure
    x = torch.randn(measure.batch_size, *shape, device=device)
    times = compare_modules({"baseline": model}, x, settings=measure, rounds=measure.rounds)
    tick()
    net = Supernet(*copied(), {n: [o.candidate for o in found] for n, found in offers.items()})
    outside, sites = live_at(net.eval(), net.switches, x)
    # What is kept is the user's own code, which may hold on to more than the block's graph does.
    blocks = {s.name: s.block for s in net.sites.values()}
    _, own = live_at(model, {b: model.get_submodule(b) for b in set(blocks.values()) if b}, x)
    keep = {n: max(s.peak, own[b].peak if (b := blocks[n]) else 0) for n, s in sites.items()}
    whole = times["baseline"].ms.median
    tick()
    factor = in_place(model, net, offers, whole, x, measure)
    tick()
    return {
        "sites": [
            {
                "site": name,
                "memory": keep[name],
                "entry": sites[name].entry,
                "offers": [offer.to_json() for offer in found],
            }
            for name, found in offers.items()
        ],
        "unusable": [vars(u) for u in (*findings.unusable, *refused)],
        "baseline": {
            "ms": whole,
            "macs": count_macs(model, x[:1]),
            "parameters": count_parameters(model),
            "weights": peak_memory(model, x).weights,
            "outside": outside,
        },
        "in_place": factor,
    }


def in_place(
    model: nn.Module,
    net: Supernet,
    offers: Offers,
    whole: float,
    x: Tensor,
    measure: MeasureSettings,
) -> float:
    """How many times what a candidate saves alone it saves within the model, in the main.

    Caches, and a machine that has become slower since, make a difference. A few plans are timed
    end to end, interleaved with the model (`whole` ms): all sites with their preferred candidates,
    all with their fastest, every other one. The factor is that of the least relative error.
    """
    preferred = {name: found[0] for name, found in offers.items()}
    fastest = {n: max(found, key=lambda o: o.saved_ms) for n, found in offers.items()}
    plans = [preferred, fastest, dict(list(preferred.items())[::2])]
    if not offers:
        return 1.0
    choices = [{n: o.candidate.label for n, o in plan.items()} for plan in plans]
    times = time_plans(model, net, choices, x, measure)
    # Sought: f such that 1 - f * saved is the share, each relative to the share.
    pairs = [
        (sum(o.saved_ms for o in plan.values()) / whole, 1 / latency.speedup.median)
        for plan, latency in zip(plans, times, strict=True)
    ]
    weights = sum((saved / share) ** 2 for saved, share in pairs)
    if not weights:
        return 1.0
    factor = sum(saved / share * (1 / share - 1) for saved, share in pairs) / weights
    return min(max(factor, 0.5), 2.0)


def read_offers(file: Path, recipe: Recipe | None = None) -> Offers:
    """The offers of each site, the preferred one first; with a recipe, those for its budget."""
    data = read_json(file)
    offers = {
        row["site"]: tuple(Offer.from_json(offer) for offer in row["offers"])
        for row in data["sites"]
    }
    if recipe is not None and recipe.candidates.follow_budget and recipe.counts_blocks:
        offers = shallower(offers)
        if recipe.candidates.drop is None:
            offers = dropped_alone(offers)
    return offers


def read_space(file: Path, recipe: Recipe | None = None) -> Space:
    """The space of plans with their costs, of those offers."""
    data, offers = read_json(file), read_offers(file, recipe)
    factor, sites = data["in_place"], []
    for row in data["sites"]:
        if found := offers.get(row["site"]):
            options = tuple(_option(offer, row["entry"], factor) for offer in found)
            sites.append(Choice(row["site"], options, row["memory"]))
    return Space(tuple(sites), **data["baseline"])


def _option(offer: Offer, entry: int, factor: float) -> Option:
    return Option(
        offer.candidate.label,
        offer.saved_ms * factor,
        offer.keep_macs - offer.macs,
        offer.keep_parameters - offer.parameters,
        offer.keep_weights - offer.weights,
        entry + offer.memory,
        offer.noise_ms * factor,
        int(offer.candidate.shallower),
    )
