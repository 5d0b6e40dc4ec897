"""What a run may prune, found and timed once: the offers of each site and the space of plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from updp.blocks import Findings
from updp.candidates import Offer, choose
from updp.engine.files import read_json
from updp.measure import compare_modules, count_macs, count_parameters, live_at, peak_memory
from updp.recipe import Recipe
from updp.rewrite import Supernet
from updp.search import Choice, Option, Space

Offers = dict[str, tuple[Offer, ...]]


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

    `shape` is an image's, (C, H, W); `copied` gives a copy of the model to rewrite. Raises
    UserError where the runtime of the recipe does not run the model.
    """
    offers, refused = choose(model, findings, recipe, device, tick)
    measure = recipe.measure
    x = torch.randn(measure.batch_size, *shape, device=device)
    times = compare_modules({"baseline": model}, x, settings=measure, rounds=measure.rounds)
    net = Supernet(*copied(), {n: [o.candidate for o in found] for n, found in offers.items()})
    outside, sites = live_at(net.eval(), net.switches, x)
    return {
        "sites": [
            {
                "site": name,
                "memory": sites[name].peak,
                "entry": sites[name].entry,
                "offers": [offer.to_json() for offer in found],
            }
            for name, found in offers.items()
        ],
        "unusable": [vars(u) for u in (*findings.unusable, *refused)],
        "baseline": {
            "ms": times["baseline"].ms.median,
            "macs": count_macs(model, x[:1]),
            "parameters": count_parameters(model),
            "weights": peak_memory(model, x).weights,
            "outside": outside,
        },
    }


def read_offers(file: Path) -> Offers:
    """The offers of each site, the preferred one first."""
    return {
        row["site"]: tuple(Offer.from_json(offer) for offer in row["offers"])
        for row in read_json(file)["sites"]
    }


def read_space(file: Path) -> Space:
    """The space of plans with their costs."""
    data = read_json(file)
    sites = []
    for row in data["sites"]:
        offers = [Offer.from_json(offer) for offer in row["offers"]]
        options = tuple(_option(offer, row["entry"]) for offer in offers)
        sites.append(Choice(row["site"], options, row["memory"]))
    return Space(tuple(sites), **data["baseline"])


def _option(offer: Offer, entry: int) -> Option:
    return Option(
        offer.candidate.label,
        offer.saved_ms,
        offer.keep_macs - offer.macs,
        offer.keep_parameters - offer.parameters,
        offer.keep_weights - offer.weights,
        entry + offer.memory,
        offer.noise_ms,
    )
