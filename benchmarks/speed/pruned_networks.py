"""The paper's four networks at 224 px, and how the speed benchmarks prune them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

import updp
from updp.blocks import Findings
from updp.candidates import Candidate, Drop, Offer, Offers, offers_within
from updp.models import load_model
from updp.recipe import Recipe
from updp.supernet import Supernet

SIZE = (3, 224, 224)
NETWORKS = (
    "timm/deit_tiny_patch16_224",
    "timm/convnext_tiny",
    "timm/mobilenetv2_140",
    "timm/resnet34",
)


def load(network: str, device: torch.device) -> nn.Module:
    """One of the networks with random weights, in evaluation mode."""
    return load_model(network).to(device).eval()


def offers_of(network: str, recipe: Recipe, device: torch.device) -> Offers:
    """What each site may become in a budget of blocks, timed as the recipe says."""
    found = updp.inspect(network, SIZE, recipe, device=str(device))
    return offers_within({o.site: (o, *found.others[o.site]) for o in found.sites}, recipe)


def cheapest(offers: Offers, blocks: int, fastest: bool) -> dict[str, Offer]:
    """The `blocks` sites that save most milliseconds, each with one candidate.

    It is the site's preferred candidate that keeps an operator or, with `fastest`, the fastest.
    """
    chosen: dict[str, Offer] = {}
    for name, site_offers in offers.items():
        kept = [o for o in site_offers if not isinstance(o.candidate, Drop)]
        if kept:
            chosen[name] = max(kept, key=lambda o: o.saved_ms) if fastest else kept[0]
    most_saved = sorted(chosen.values(), key=lambda o: -o.saved_ms)[:blocks]
    return {o.site: o for o in most_saved}


def merged(model: nn.Module, findings: Findings, chosen: Mapping[str, Candidate]) -> nn.Module:
    """The model with each named site pruned to its candidate and merged."""
    net = Supernet(model, findings, {name: (c,) for name, c in chosen.items()}).eval()
    net.choose({name: c.label for name, c in chosen.items()})
    return net.merged()
