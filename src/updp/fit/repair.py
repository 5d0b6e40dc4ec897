"""Repair: fit kept operators behind a pruned site to the outputs that they had in the baseline.

One after another, by ridge regression towards their own weights, as in the layer-wise compensation
of *Optimal Brain Compression* (Frantar & Alistarh, 2022). Only weights, biases and the shifts of
norms change. The last operator of a branch also compensates the change of its skip.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks import Chain, LinearStep, ScaleStep, Step, TracedSite
from updp.blocks.layer_calls import recorded_calls
from updp.blocks.modules import UserCodeError, call_user_code, evaluating, hooks, parameter_owners
from updp.blocks.reading.linear import CONVOLUTIONS
from updp.fit.fit_task import FitTask
from updp.fit.operator import FittableOperator, channel_factor, operator_fits
from updp.recipe import FitSettings

_log = logging.getLogger(__name__)


def site_repairs(traced: TracedSite, settings: FitSettings, batches: int) -> list[FitTask]:
    """Fit tasks for a kept site, in the order to solve them: its skip, then its branch.

    `batches` is the number of calibration batches. Operators that cannot be set are left out.
    """
    site = traced.site
    if site.calls > 1:
        return []
    fits = [] if site.skip is None else [*operator_fits(site.skip)]
    if site.branch is None:
        fits += _layer_fits(traced)
    else:
        fits += operator_fits(site.branch, traced.skip(), site.post)
    return [fit.fit_task(settings, batches) for fit in fits if fit.fits_into(settings)]


def operator_repair(
    name: str, module: nn.Module, x: Tensor, settings: FitSettings, batches: int
) -> FitTask | None:
    """Fit task for a convolution or linear layer outside of all sites, over `batches` batches.

    `x` is an input of the module. Returns None if its weights cannot be set, or if its normal
    matrix takes more than a quarter of the memory for rows.
    """
    if (step := _settable(name, module, x)) is None:
        return None
    fit = FittableOperator(_chain(step), 0)
    return fit.fit_task(settings, batches) if fit.fits_into(settings) else None


@torch.no_grad()
def _layer_fits(traced: TracedSite) -> Iterator[FittableOperator]:
    """Linear operators of a site whose branch is no chain, such as attention, in execution order.

    Each is fitted to its own output in the baseline. If the branch ends with the last operator, or
    with that and a factor per channel, the last is fitted to the output with the skip.
    """
    for path in (traced.site.region.skip, traced.site.region.branch):
        if path:
            yield from _path_fits(traced, path)


def _path_fits(traced: TracedSite, path: Sequence[str]) -> Iterator[FittableOperator]:
    site = traced.site
    region = site.region
    whole = traced.until(path[-1])
    kinds = (*CONVOLUTIONS, nn.Linear)
    operators = {name: m for name, m in traced.block.named_modules() if isinstance(m, kinds)}
    try:
        with evaluating(whole), recorded_calls(operators) as calls:
            output: Tensor = call_user_code(whole, *traced.example())
    except UserCodeError as error:  # a branch that takes no random numbers
        _log.info("%s: what is kept is not repaired: %s", site.name, error)
        return
    owners = parameter_owners(traced.block)
    count = Counter(call.name for call in calls)
    for call in calls:
        name, module, x = call.name, call.module, call.x
        shared = any(owners[id(p)] > 1 for p in module.parameters())
        if shared or count[name] > 1 or x.ndim < 2 or len(x) % site.shape_in[0]:
            continue  # tokens in windows are some of an image's
        if (step := _settable(name, module, x)) is None:
            continue
        ends = call is calls[-1] and path is region.branch and region.add is not None
        scale = channel_factor(call.y, output, _layout(step)) if ends else None
        fit = FittableOperator(_chain(step), 0, enter=_Before(whole, module))
        if scale is not None:
            chain, skip = _chain(step, ScaleStep(name, scale)), traced.skip()
            fit = replace(fit, chain=chain, skip=skip, post=site.post)
        if fit.is_on:
            yield fit


def _settable(name: str, module: nn.Module, x: Tensor) -> LinearStep | None:
    """The module as a step, if it is a linear operator whose weights can be set, else None."""
    try:
        step = LinearStep.read(name, module, x)
    except ValueError:
        return None
    return None if step.derived else step


def _layout(step: LinearStep) -> str:
    return "first" if isinstance(step.module, CONVOLUTIONS) else "last"


def _chain(step: LinearStep, *behind: Step) -> Chain:
    layout = _layout(step)
    return Chain((step, *behind), layout, layout, layout, len(step.stride))


@dataclass(frozen=True)
class _Before:
    """Compute the input of `layer`, a module inside `part`, from the inputs of `part`."""

    part: nn.Module
    layer: nn.Module

    def __call__(self, *inputs: Any) -> Tensor:
        given: list[Tensor] = []

        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            given.append(args[0].clone())

        with hooks([self.layer.register_forward_pre_hook(hook)]):
            self.part(*inputs)
        return given[0]
