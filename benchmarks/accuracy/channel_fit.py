"""updp's closed-form fit for a network with fewer channels, whatever chose them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from updp.blocks import find
from updp.blocks.copying import copy_module
from updp.blocks.nested import Samples, call
from updp.fit import FitTask
from updp.recipe import FitSettings
from updp.supernet import Supernet
from updp.supernet.fitting import (
    FitPlace,
    add_inputs,
    execution_order,
    finish,
    gather_targets,
    repairs,
)
from updp.supernet.judge import Judge, split
from updp.supernet.switch import KEEP, Switch
from updp.supernet.walk import Walk


@torch.no_grad()
def fit_channels(
    baseline: nn.Module,
    narrow: nn.Module,
    left: Mapping[str, Tensor],
    batches: Sequence[Samples],
    settings: FitSettings,
) -> nn.Module:
    """A copy of `narrow`, its linear operators fitted one after another to the baseline's values.

    Targets are the baseline's outputs of the channels that are left, inputs those of the network
    fitted so far; a judge decides on held-out images how much of each fit is kept, as in
    `fit_plan`.

    Args:
        baseline: the network before its channels were cut.
        narrow: the same modules with fewer channels.
        left: indices of the output channels that each convolution or linear layer still has, by
            module path.
        batches: calibration images, each (N, C, H, W).
        settings: how to fit.
    """
    batches, judged = split(batches, settings.judged)
    wide, net = (_whole(model, batches[0]) for model in (baseline, narrow))
    targets, inputs = _places(wide, net, left, batches, settings)
    gather_targets(wide, targets, batches, settings.rows_mb * 2**20)
    outputs = [call(wide, images) for images in judged]
    walk = Walk(net, [p.module for p in inputs], [*batches, *judged], settings.rows_mb)
    judge = Judge(net, outputs, walk, len(batches)) if judged else None
    for place in inputs:
        for task in place.fit_tasks:
            if add_inputs(task, walk, place, range(len(batches))):
                finish(task, place, KEEP, judge)
            else:
                task.regression.clear()
    return net.baseline().eval()


def _whole(model: nn.Module, images: Samples) -> Supernet:
    """A copy in which all sites are kept."""
    model = copy_module(model)
    findings = find(model, images[:2])
    return Supernet(model, findings, {}, kept=[site.name for site in findings.sites]).eval()


def _places(
    wide: Supernet,
    net: Supernet,
    left: Mapping[str, Tensor],
    batches: Sequence[Samples],
    settings: FitSettings,
) -> tuple[list[FitPlace], list[FitPlace]]:
    """The same tasks at the places of both networks, in the order of execution."""
    order = {name: (module, x) for name, module, x in execution_order(wide, batches[0])}
    targets, inputs = list[FitPlace](), list[FitPlace]()
    for name, module, x in execution_order(net, batches[0]):
        if name not in order:
            continue
        own, x_own = order[name]
        of_wide = repairs(wide, name, own, x_own, settings, len(batches))
        known = {task.operator: task for task in of_wide}
        block = net.sites[name].block if isinstance(module, Switch) else ""
        tasks = [
            _toward(known[task.operator], task, left.get(f"{block}.{task.operator}".lstrip(".")))
            for task in repairs(net, name, module, x, settings, len(batches))
            if task.operator in known
        ]
        targets.append(FitPlace(name, own, False, tasks))
        inputs.append(FitPlace(name, module, False, tasks))
    return targets, inputs


def _toward(wide: FitTask, narrow: FitTask, left: Tensor | None) -> FitTask:
    """The task of the narrow network with the wide one's target."""

    def target(x: Tensor, *extras: object) -> Tensor:
        maps = wide.target(x, *extras)
        return maps if left is None else maps[:, left]

    return replace(narrow, target=target)
