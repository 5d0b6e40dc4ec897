"""The survey before stage 1: find the sites of the model and time their candidates.

A run keeps its first survey, because a new one would measure different times.
"""

import logging
from typing import Any, ClassVar

from torch import nn

from updp.blocks import Findings, try_other_size
from updp.blocks.copying import copy_module
from updp.blocks.nested import Samples
from updp.candidates import Offers, make_offers
from updp.data.example import write_example
from updp.io import processes
from updp.measure import compare_modules, count_macs, count_parameters, live_at, peak_memory
from updp.recipe import MeasureSettings
from updp.search import BaselineCost, Survey, SurveyedSite, latency_factor
from updp.stages.context import Context, StageKey
from updp.stages.outputs import BaselineOutputs
from updp.supernet import Supernet
from updp.supernet.timing import time_plans
from updp.tasks import CLASSIFICATION

_log = logging.getLogger(__name__)
_WHOLE_STEPS = 3  # progress steps for the whole model, in addition to one per site


class SitesKey(StageKey):
    """The model, the data, and the settings of candidates and measurement."""

    FILE: ClassVar[str] = "sites/key.json"
    model: str  # as the user named it; empty for a module from Python
    seed: int  # seed of the recipe, which decides untrained weights, too
    weights: str  # sha256 of the model's weights
    data: str  # sha256 fingerprint of images and labels
    # Settings of data, candidates and measure that decide the outcome, and a task other than
    # classification.
    recipe: dict[str, Any]


def make_key(context: Context) -> SitesKey:
    """The key of this stage."""
    hashes, recipe = context.hashes, context.recipe
    return SitesKey(
        model=context.names.model,
        seed=recipe.seed,
        weights=hashes.weights,
        data=hashes.data,
        recipe={n: getattr(recipe, n).decisive() for n in ("data", "candidates", "measure")}
        # Earlier versions have only this task, so it is not part of their keys.
        | ({} if context.task == CLASSIFICATION else {"task": context.task.name}),
    )


def check(context: Context) -> None:
    """Try another image size. Raises UserError if a glob matches no site.

    Runs before anything is written.
    """
    findings = context.findings(context.baseline)
    context.other_size = try_other_size(context.baseline, findings, context.example(1))
    if note := context.other_size.describe(context.feed.image_size):
        _log.warning("the pruned model will be for %s", note)


def run(context: Context) -> None:
    """Write `sites.json`: candidates of each site, refusals with reasons, the baseline's cost.

    Only the first of several processes does the timing; the others wait.
    """
    findings = context.findings(context.baseline)
    if not processes.is_first():
        return
    write_example(context.folder("sites"), context.feed.stored_example)
    if not context.task.is_ragged:
        BaselineOutputs.of(context.baseline, context.example(2)).write(context.root)
    context.progress.begin("sites: timing candidates", len(findings.sites) + _WHOLE_STEPS)
    survey(context, findings).write(context.root)


def survey(context: Context, findings: Findings) -> Survey:
    """Time the candidates of every site, and the baseline against a few whole plans.

    Raises UserError if the recipe's runtime cannot run the model.
    """
    model, measure, tick = context.baseline, context.recipe.measure, context.progress.advance
    offers, refused = make_offers(model, findings, context.recipe, context.device, tick)
    x = context.example(measure.batch_size)
    times = compare_modules({"baseline": model}, x, settings=measure, rounds=measure.rounds)
    tick()
    copied = copy_module(model)  # a supernet replaces modules in place
    candidates = {name: [o.candidate for o in found] for name, found in offers.items()}
    net = Supernet(copied, context.findings(copied), candidates)
    outside, sites = live_at(net.eval(), net.switches, x)
    # A kept site runs the user's forward, which may keep more tensors alive than the traced block.
    blocks = {s.name: s.block for s in net.sites.values()}
    _, originals = live_at(model, {b: model.get_submodule(b) for b in set(blocks.values()) if b}, x)
    keep = {n: max(s.peak, originals[b].peak if (b := blocks[n]) else 0) for n, s in sites.items()}
    whole = times["baseline"].ms.median
    tick()
    together = in_place(model, net, offers, whole, x, measure)
    tick()
    return Survey(
        sites=tuple(
            SurveyedSite(site=name, memory=keep[name], entry=sites[name].entry, offers=found)
            for name, found in offers.items()
        ),
        unusable=(*findings.unusable, *refused),
        baseline=BaselineCost(
            ms=whole,
            macs=count_macs(model, x[:1]),
            parameters=count_parameters(model),
            weights=peak_memory(model, x).weights,
            outside=outside,
        ),
        in_place=together,
    )


def in_place(
    model: nn.Module,
    net: Supernet,
    offers: Offers,
    whole: float,
    x: Samples,
    measure: MeasureSettings,
) -> float:
    """Factor from the sum of single savings of candidates to the saving of whole plans.

    Three plans are timed end to end, interleaved with the model: all sites with their preferred
    candidates, all with their fastest, every second one with its preferred. See
    `search.latency_factor`.

    Args:
        model: the baseline.
        net: a supernet of it, with the offered candidates.
        offers: the offers of each site, the preferred one first.
        whole: the baseline's latency in ms.
        x: images (N, C, H, W), or other inputs, to time on.
        measure: how to time.
    """
    preferred = {name: found[0] for name, found in offers.items()}
    fastest = {n: max(found, key=lambda o: o.saved_ms) for n, found in offers.items()}
    plans = [preferred, fastest, dict(list(preferred.items())[::2])]
    if not offers:
        return 1.0
    choices = [{n: o.candidate.label for n, o in plan.items()} for plan in plans]
    times = time_plans(model, net, choices, x, measure)
    return latency_factor(
        [
            (sum(o.saved_ms for o in plan.values()) / whole, 1 / latency.speedup.median)
            for plan, latency in zip(plans, times, strict=True)
        ]
    )
