"""Fit of a plan's candidates: closed-form regressions, one after another, no gradient.

Targets are the baseline's outputs on its own activations; inputs come from the prefix fitted so
far. So each fit also corrects the error left by the earlier ones. Several processes share the
batches of calibration images.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from updp.blocks.modules import hooks, parameter_owners
from updp.blocks.nested import Samples, call
from updp.blocks.reading.linear import CONVOLUTIONS
from updp.fit import FitTask, observer, operator_repair, site_repairs
from updp.io import processes
from updp.io.memory import hand_back
from updp.io.records import Record
from updp.recipe import FitSettings
from updp.supernet.judge import Judge, split
from updp.supernet.partial import observed_inputs
from updp.supernet.routed import routed
from updp.supernet.shared import unchangeable
from updp.supernet.supernet import Supernet
from updp.supernet.switch import KEEP, Switch
from updp.supernet.walk import NotReached, Walk
from updp.tasks import CLASSIFICATION, Task

_log = logging.getLogger(__name__)


class FitRow(BaseModel, frozen=True):
    """One fitted operator, of a site or outside of all sites."""

    site: str  # name of the site, or module path of an operator outside of all sites
    candidate: str  # label of the site's candidate; `keep` where the operator was repaired
    operator: str  # name within the block; outside of all sites the module path
    error: float  # mean squared error on held-out rows, as a share of the target's variance
    prior_error: float  # the same with the weights before the fit
    strength: float | None  # strength of the ridge; null where the weights before were better
    rows: int  # number of sampled output pixels or tokens
    kept: float = 1.0  # share of a repair that was kept; 1 in a pruned site
    # The task's distance from the baseline (KL of logits) afterwards, on images of no fit; null
    # where no images were set aside for it.
    divergence: float | None = None


class FitRecord(Record):
    """All operators that stage 3 fitted, in order."""

    FILE: ClassVar[str] = "subnet/fit.json"
    rows: tuple[FitRow, ...]  # one for each operator, in the order of execution


@torch.no_grad()
def fit_plan(
    net: Supernet,
    choices: Mapping[str, str],
    batches: Sequence[Samples],
    settings: FitSettings,
    tick: Callable[[str], None] = lambda place: None,
    begin: Callable[[int], None] = lambda steps: None,
    task: Task = CLASSIFICATION,
) -> list[FitRow]:
    """Fit the candidates of a plan, and repair the kept operators behind its first pruned site.

    A repair changes the model's own weights: of kept sites and of linear operators outside of all
    sites. `Judge` decides on held-out images how much of each repair is kept. Afterwards the forms
    are collapsed, and the net is in evaluation mode under `choices`.

    Args:
        choices: the candidate of each pruned site.
        batches: calibration images, each (N, C, H, W), or other inputs.
        tick: called once when the targets are gathered, then after each fit.
        begin: called first, with the number of times that `tick` will be called.
        task: defines which outputs count, and their distance from the baseline's.

    Returns:
        The record of each fit, in order.
    """
    net.eval()
    net.set_lambda(1.0)
    net.choose({})
    batches, judged = split(batches, settings.judged if settings.repair else 0)
    places = _places(net, choices, batches, settings)
    begin(1 + sum(len(place.fit_tasks) for place in places))
    gather_targets(net, places, batches, settings.rows_mb * 2**20)
    numbered = list(processes.share(batches))
    mine = [images for _, images in processes.share(judged)]
    baseline = [task.run(net, images) for images in mine]
    tick("targets")
    modules, images = [place.module for place in places], [images for _, images in numbered]
    walk = Walk(net, modules, [*images, *mine], settings.rows_mb, batches[0], task.run)
    judge = Judge(net, baseline, walk, len(numbered), task) if judged else None
    figures = list[FitRow]()
    chosen: dict[str, str] = {}
    for place in places:
        if place.pruned:
            chosen[place.name] = choices[place.name]
            net.choose(chosen)
            if judge is not None:
                judge.forget()
        for fit_task in place.fit_tasks:
            if add_inputs(fit_task, walk, place, [number for number, _ in numbered]):
                candidate = choices.get(place.name, KEEP)
                figures.append(finish(fit_task, place, candidate, judge))
            else:
                fit_task.regression.clear()
            tick(place.name)
        hand_back()
    net.choose(choices)
    return figures


def add_inputs(fit_task: FitTask, walk: Walk, place: FitPlace, numbers: Sequence[int]) -> bool:
    """Give a regression the inputs of each batch; False where rows do not pair with the targets.

    Nor do they where the network, as it is pruned so far, calls the place no more.
    """
    paired = True
    try:
        # Batches of the judge are walked along, behind the others, for it resumes from here.
        for position, inputs in enumerate(walk.to(place.module)):
            if paired and position < len(numbers):
                paired = fit_task.add_input(numbers[position], *inputs)
    except NotReached as error:
        _log.info("%s is not fitted: %s", place.name, error)
        paired = False
    return all(processes.all_gather(paired))


def finish(fit_task: FitTask, place: FitPlace, candidate: str, judge: Judge | None) -> FitRow:
    """Solve a regression; if it is a repair, keep the share of it that the judge allows."""
    kept, divergence = 1.0, None
    if judge is None:
        fitted = fit_task.finish()
    elif place.pruned:
        fitted = fit_task.finish()
        divergence = judge.measure_pruned()
    else:
        fitted, kept, divergence = judge.keep_share_of(fit_task.finish)
    return FitRow(
        site=place.name,
        candidate=candidate,
        operator=fit_task.operator,
        error=fitted.error,
        prior_error=fitted.prior_error,
        strength=fitted.strength,
        rows=fitted.rows,
        kept=kept,
        divergence=divergence,
    )


@dataclass(frozen=True)
class FitPlace:
    """A site's switch, or an operator outside of all sites, with its regressions."""

    name: str
    module: nn.Module
    pruned: bool
    fit_tasks: list[FitTask]


def _places(
    net: Supernet, choices: Mapping[str, str], batches: Sequence[Samples], settings: FitSettings
) -> list[FitPlace]:
    """Places to fit, from the first pruned site on, in execution order."""
    places: list[FitPlace] = []
    order = execution_order(net, batches[0])
    modules = {name: module for name, module, _ in order}
    unpaired = routed(net, batches[0], modules)
    fixed = unchangeable(net, batches[0], modules) if settings.repair else set()
    for name, module, x in order:
        pruned = choices.get(name, KEEP) != KEEP
        if not (pruned or (places and settings.repair)):
            continue
        if name in unpaired or (not pruned and name in fixed):
            fit_tasks = []
        elif pruned:
            assert isinstance(module, Switch)
            fit_tasks = module.form(choices[name]).fit_tasks(settings, len(batches))
        else:
            fit_tasks = repairs(net, name, module, x, settings, len(batches))
        places.append(FitPlace(name, module, pruned, fit_tasks))
    return places


def repairs(
    net: Supernet, name: str, module: nn.Module, x: Tensor, settings: FitSettings, batches: int
) -> list[FitTask]:
    """Tasks that fit a kept site, or an operator outside of all sites with the input x, anew."""
    if isinstance(module, Switch):
        return site_repairs(net.traced(name), settings, batches)
    repair = operator_repair(name, module, x, settings, batches)
    return [] if repair is None else [repair]


def execution_order(net: Supernet, images: Samples) -> list[tuple[str, nn.Module, Tensor]]:
    """Sites, and linear operators outside of them that run just once, with their inputs.

    An operator that runs several times, or shares its weights, has no single target.
    """
    inside = {id(m) for switch in net.all_switches.values() for m in switch.modules()}
    owners = parameter_owners(net.model)
    names: dict[nn.Module, str] = {switch: name for name, switch in net.all_switches.items()}
    for name, module in net.model.named_modules():
        linear = isinstance(module, (*CONVOLUTIONS, nn.Linear)) and id(module) not in inside
        if linear and all(owners[id(p)] == 1 for p in module.parameters()):
            names[module] = name
    order: dict[nn.Module, Tensor] = {}
    calls: Counter[nn.Module] = Counter()

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls[module] += 1
        if args:
            order.setdefault(module, args[0].clone())

    with hooks(module.register_forward_pre_hook(hook) for module in names):
        call(net, images[:2])
    return [
        (names[module], module, x)
        for module, x in order.items()
        if isinstance(module, Switch) or calls[module] == 1
    ]


def gather_targets(
    net: Supernet, places: list[FitPlace], batches: Sequence[Samples], room: float
) -> None:
    """Gather the baseline's outputs at all places, in at most `room` bytes."""
    regressions = [fit_task.regression for place in places for fit_task in place.fit_tasks]

    def gather(number: int) -> None:
        with observed_inputs({p.module: observer(number, p.fit_tasks, []) for p in places}):
            call(net, batches[number])

    gather(0)
    needed = len(batches) * sum(regression.target_bytes for regression in regressions)
    is_large = needed > room  # the first batch says how much all will take, to every process
    for regression in regressions:
        if is_large:
            regression.thin(room / needed)
        if processes.rank():
            regression.clear()
    for number, _ in processes.share(batches):
        if number or is_large:
            gather(number)
