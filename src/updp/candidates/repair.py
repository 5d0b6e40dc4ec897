"""Repair: kept linear operators whose inputs have changed are fitted to what they gave before.

Each in its turn, by ridge regression towards its own weights, as `fit` does for a pruned branch
(compensation layer by layer, as in Frantar & Alistarh, *Optimal Brain Compression*, 2022, here for
pruned depth). Only weights, biases and the shifts of norms change: the model's modules keep their
shapes and names. A branch's last operator also makes up for what its skip brings along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from updp import algebra
from updp import recipe as recipes
from updp.algebra import Affine
from updp.blocks import ActStep, Chain, LinearStep, NormStep, ScaleStep, Site, Step, to_layout
from updp.blocks.extract import extract
from updp.candidates.fitting import Fitting, as_maps
from updp.candidates.fold import factor_of, fold_norm, operator_of
from updp.fit import Fitted, Problem, clamp_of

_OFF = 1e-6  # the scale of a channel that is switched off: it says nothing


def site_repairs(
    site: Site, block: nn.Module, graph: fx.Graph, settings: recipes.Fit, batches: int
) -> list[Fitting]:
    """The regressions for a kept site, in the order in which they are to be made.

    First the operators of its skip, then those of its branch; those that can be set.
    """
    if site.branch is None or site.calls > 1:
        return []
    region, found = site.region, list[Fitting]()
    skip: Callable[[Tensor], Tensor] | None = None
    if region.add is not None:
        skip = extract(block, graph, region.entry, region.skip[-1]) if region.skip else torch.clone
    if site.skip is not None:
        found += [_Kept(site.skip, i).fitting(settings, batches) for i in _places(site.skip)]
    for i in _places(site.branch):
        place = _Kept(site.branch, i)
        if place.is_last:  # before the end activation, with the skip
            place = _Kept(site.branch, i, skip, site.post)
        found.append(place.fitting(settings, batches))
    return found


def operator_repair(
    name: str, module: nn.Module, x: Tensor, settings: recipes.Fit, batches: int
) -> Fitting | None:
    """The regression for a convolution or a linear layer that no site has, and which reads `x`.

    None where its weights cannot be set, or are so many that there is no memory for them.
    """
    try:
        step = LinearStep.read(name, module, x)
    except ValueError:
        return None
    unknowns = step.weight[0].numel() + 1
    if step.derived or step.groups * unknowns**2 * 8 > settings.rows_mb * 2**20 / 4:
        return None
    layout = "first" if isinstance(module, nn.Conv2d) else "last"
    return _Kept(Chain((step,), layout, layout, layout), 0).fitting(settings, batches)


def _places(chain: Chain) -> Iterator[int]:
    for i, step in enumerate(chain.steps):
        if isinstance(step, LinearStep) and not step.derived:
            affine = _affine(_after(chain, i), step)
            if affine.scale.abs().min() > _OFF:
                yield i


def _after(chain: Chain, place: int) -> tuple[Step, ...]:
    """The affine steps right behind a place."""
    end = place + 1
    while end < len(chain.steps) and _is_affine(chain.steps[end]):
        end += 1
    return chain.steps[place + 1 : end]


@dataclass(frozen=True)
class _Kept:
    """A kept operator in a chain. `skip` is added to what comes out; `post` ends the block."""

    chain: Chain
    place: int
    skip: Callable[[Tensor], Tensor] | None = None
    post: ActStep | None = None

    @property
    def after(self) -> tuple[Step, ...]:
        """The affine steps behind it."""
        return _after(self.chain, self.place)

    @property
    def end(self) -> int:
        """The place behind those."""
        return self.place + 1 + len(self.after)

    @property
    def is_last(self) -> bool:
        """Whether nothing else comes behind it."""
        return self.end == len(self.chain.steps)

    def fitting(self, settings: recipes.Fit, batches: int) -> Fitting:
        """The regression: what the operator and the affine steps behind it give."""
        own, after, layout = self._own, self.after, self.chain.layout
        affine = _affine(after, own)

        def target(x: Tensor, *extras: Any) -> Tensor:
            h, kept = self._run(x, self.end), self._beside(x)
            return as_maps(h if kept is None else h + kept, layout)

        def inputs(x: Tensor, *extras: Any) -> tuple[Tensor, Tensor | None]:
            kept = self._beside(x)
            h = as_maps(self._run(x, self.place), layout)
            return h, None if kept is None else as_maps(kept, layout)

        @torch.no_grad()
        def take(fitted: Fitted) -> None:
            weight = fitted.operator.weight / affine.scale[:, None, None, None]
            own.weight.copy_(weight.view_as(own.weight))
            _shift(own, after, fitted.operator.bias, affine)

        behind = self.post
        if not self.is_last and isinstance(step := self.chain.steps[self.end], ActStep):
            behind = step
        clamp = clamp_of(behind.function if behind else None, own.weight)
        operator = algebra.after(operator_of(own, False), affine)
        biased = own.bias is not None or any(_has_shift(s) for s in after)
        problem = Problem(operator, clamp, settings, batches, biased=biased)
        return Fitting(own.name, problem, target, inputs, take)

    @property
    def _own(self) -> LinearStep:
        step = self.chain.steps[self.place]
        assert isinstance(step, LinearStep)
        return step

    def _run(self, x: Tensor, end: int) -> Tensor:
        """The chain's value before the step `end`, canonical."""
        h = self._enter(x, self.chain.layout_in)
        for step in self.chain.steps[:end]:
            h = step.keep(h, self.chain.layout)
        return h

    def _beside(self, x: Tensor) -> Tensor | None:
        if self.skip is None:
            return None
        return self._enter(self.skip(x.clone()), self.chain.layout_out)

    def _enter(self, x: Tensor, source: str) -> Tensor:
        return to_layout(x, source, self.chain.layout) if x.ndim == 4 else x


def _is_affine(step: Step) -> bool:
    if isinstance(step, ScaleStep):
        return True
    return (
        isinstance(step, NormStep)
        and isinstance(step.module, _BatchNorm)
        and step.module.running_var is not None
    )


def _has_shift(step: Step) -> bool:
    return isinstance(step, NormStep) and step.module.bias is not None  # type: ignore[attr-defined]


def _affine(after: tuple[Step, ...], last: LinearStep) -> Affine:
    ones = last.weight.new_ones(last.out_channels, dtype=torch.float64)
    total = Affine(ones, torch.zeros_like(ones))
    for step in after:
        one = factor_of(step, ones) if isinstance(step, ScaleStep) else fold_norm(step.module)  # type: ignore[union-attr,arg-type]
        total = algebra.chain(total, one)
    return total


def _shift(last: LinearStep, after: tuple[Step, ...], bias: Tensor, affine: Affine) -> None:
    """Change what shifts the operator, if anything does, so that its bias in all is `bias` (O,)."""
    change = bias - affine.shift
    if last.bias is not None:
        last.bias.copy_(change / affine.scale)
        return
    for number in reversed(range(len(after))):
        step = after[number]
        if isinstance(step, NormStep) and _has_shift(step):
            step.module.bias += change / _affine(after[number + 1 :], last).scale  # type: ignore[attr-defined]
            return
