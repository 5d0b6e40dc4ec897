"""Repair: a kept branch whose input has changed is fitted to what it gave before.

Only the branch's last linear operator changes, and the shift behind it: by ridge regression
towards its own weights, as `fit` does for a pruned branch (compensation layer by layer, as in
Frantar & Alistarh, *Optimal Brain Compression*, 2022, here for pruned depth). The model's modules
keep their shapes and names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from updp import algebra
from updp import recipe as recipes
from updp.algebra import Affine
from updp.blocks import Chain, LinearStep, NormStep, ScaleStep, Site, to_layout
from updp.blocks.extract import extract
from updp.candidates.fitting import Fitting, as_maps
from updp.candidates.fold import factor_of, fold_norm, operator_of
from updp.fit import Fitted, Problem, clamp_of


def repairing(
    site: Site, block: nn.Module, graph: fx.Graph, settings: recipes.Fit, batches: int
) -> Fitting | None:
    """The regression for a kept site; None where its last operator cannot be set."""
    chain = site.branch
    if chain is None or site.calls > 1 or (tail := _tail(chain)) is None:
        return None
    head, last, after = tail
    layout = chain.layout
    affine = _affine(after, last)
    if affine.scale.abs().min() < 1e-6:  # a channel that is switched off says nothing
        return None
    skip = extract(block, graph, site.region.entry, site.region.skip[-1]) if _has(site) else None
    is_added = site.region.add is not None

    def enter(x: Tensor, source: str) -> Tensor:
        return to_layout(x, source, layout) if x.ndim == 4 else x

    def beside(x: Tensor) -> Tensor | None:
        if not is_added:
            return None
        return enter(x if skip is None else skip(x.clone()), chain.layout_out)

    def run(x: Tensor, steps: tuple[Any, ...]) -> Tensor:
        h = enter(x, chain.layout_in)
        for step in steps:
            h = step.keep(h, layout)
        return h

    def target(x: Tensor, *extras: Any) -> Tensor:
        h, kept = run(x, chain.steps), beside(x)
        return as_maps(h if kept is None else h + kept, layout)

    def inputs(x: Tensor, *extras: Any) -> tuple[Tensor, Tensor | None]:
        kept = beside(x)
        return as_maps(run(x, head), layout), None if kept is None else as_maps(kept, layout)

    @torch.no_grad()
    def take(fitted: Fitted) -> None:
        found = fitted.operator
        own = last.weight
        own.copy_((found.weight / affine.scale[:, None, None, None]).view_as(own))
        _shift(last, after, found.bias, affine)

    operator = algebra.after(operator_of(last, False), affine)
    clamp = clamp_of(site.post.function if site.post else None, last.weight)
    return Fitting(Problem(operator, clamp, settings, batches), target, inputs, take)


def _has(site: Site) -> bool:
    return site.region.add is not None and bool(site.region.skip)


def _tail(chain: Chain) -> tuple[tuple[Any, ...], LinearStep, tuple[Any, ...]] | None:
    """What comes before the last linear operator, it, and the affine steps behind it."""
    index = max(i for i, s in enumerate(chain.steps) if isinstance(s, LinearStep))
    last, after = chain.steps[index], chain.steps[index + 1 :]
    assert isinstance(last, LinearStep)
    if last.derived or not all(_is_affine(s) for s in after):
        return None
    if last.bias is None and not any(_has_shift(s) for s in after):
        return None
    return chain.steps[:index], last, after


def _is_affine(step: Any) -> bool:
    if isinstance(step, ScaleStep):
        return True
    return (
        isinstance(step, NormStep)
        and isinstance(step.module, _BatchNorm)
        and step.module.running_var is not None
    )


def _has_shift(step: Any) -> bool:
    return isinstance(step, NormStep) and step.module.bias is not None  # type: ignore[attr-defined]


def _affine(after: tuple[Any, ...], last: LinearStep) -> Affine:
    ones = last.weight.new_ones(last.out_channels, dtype=torch.float64)
    total = Affine(ones, torch.zeros_like(ones))
    for step in after:
        one = factor_of(step, ones) if isinstance(step, ScaleStep) else fold_norm(step.module)
        total = algebra.chain(total, one)
    return total


def _shift(last: LinearStep, after: tuple[Any, ...], bias: Tensor, affine: Affine) -> None:
    """Change what shifts the branch, so that its bias in all is `bias` (O,)."""
    change = bias - affine.shift
    if last.bias is not None:
        last.bias.copy_(change / affine.scale)
        return
    for number in reversed(range(len(after))):
        if _has_shift(after[number]):
            behind = _affine(after[number + 1 :], last).scale
            after[number].module.bias += change / behind
            return
