"""One linear operator of a kept chain, fitted in place to what it gave before.

What is fitted is the operator with the affine steps behind it; the target is the baseline's value
before the next activation. Only weights, biases and the shifts of norms change.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from updp import algebra
from updp.algebra import Affine, Operator
from updp.blocks import ActStep, Chain, LinearStep, NormStep, ScaleStep, Site, Step, to_layout
from updp.blocks.folding import factor_of, fold_norm, operator_of
from updp.blocks.surgery import extract
from updp.fit.clamp import Clamp, clamp_of
from updp.fit.fitting import FitTask, as_maps
from updp.fit.regression import Fitted, Regression
from updp.recipe import FitSettings

_OFF = 1e-6  # the scale of a channel that is switched off: it says nothing
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OperatorFit:
    """The operator at a place in a chain.

    Where nothing but affine steps is behind it, `skip` (a function of what enters) is added to what
    comes out, and `post` ends the block.
    """

    chain: Chain
    place: int
    skip: Function | None = None
    post: ActStep | None = None

    def fitting(self, settings: FitSettings, batches: int) -> FitTask:
        """The regression of all of it, to so many batches."""
        regression = Regression(*self._prior_and_clamp, settings, batches, biased=self._biased)
        return self._regression(regression, self.set)

    def narrowing(
        self,
        settings: FitSettings,
        batches: int,
        keep: int,
        cut: Callable[[Tensor], None],
        *,
        gated: bool,
    ) -> list[FitTask]:
        """The regression in which it keeps `keep` of its input channels.

        `cut` takes the others, all but those of the given numbers, out of the chain's modules.
        Where those are `gated`, mixed by a norm or a gate, it then reads other values: so there is
        one more regression, of those.
        """
        operator, clamp = self._prior_and_clamp
        regression = Regression(operator, clamp, settings, batches, biased=self._biased, keep=keep)
        narrow = replace(operator, weight=operator.weight[:, :keep])
        again = Regression(narrow, clamp, settings, batches, biased=self._biased)

        def take(fitted: Fitted) -> None:
            assert fitted.channels is not None
            cut(fitted.channels)
            self.set(fitted)
            again.operator = fitted.operator

        both = [self._regression(regression, take), self._regression(again, self.set)]
        return both if gated else both[:1]

    @torch.no_grad()
    def set(self, fitted: Fitted) -> None:
        """Take the weights and the bias of an operator that stands for the affine steps, too."""
        own, after, affine = self._own, self._after, self._affine
        on = affine.scale.abs() > _OFF
        weight = fitted.operator.weight[on] / affine.scale[on, None, None, None]
        own.weight[on] = weight.reshape_as(own.weight[on]).to(own.weight)
        _shift(own, after, fitted.operator.bias, affine, on)

    @property
    def is_on(self) -> bool:
        """Whether all that it gives gets through the affine steps."""
        return bool(self._affine.scale.abs().min() > _OFF)

    def _regression(self, regression: Regression, take: Callable[[Fitted], None]) -> FitTask:
        layout = self.chain.layout

        def target(x: Tensor, *extras: Any) -> Tensor:
            h, kept = self._run(x, self._end), self._beside(x)
            return as_maps(h if kept is None else h + kept, layout)

        def inputs(x: Tensor, *extras: Any) -> tuple[Tensor, Tensor | None]:
            kept = self._beside(x)
            h = as_maps(self._run(x, self.place), layout)
            return h, None if kept is None else as_maps(kept, layout)

        return FitTask(self._own.name, regression, target, inputs, take)

    @property
    def _prior_and_clamp(self) -> tuple[Operator, Clamp]:
        """What is fitted, and what clamps what it gives."""
        own, behind = self._own, self.post if self._is_last else None
        if not self._is_last and isinstance(step := self.chain.steps[self._end], ActStep):
            behind = step
        clamp = clamp_of(behind.function if behind else None, own.weight)
        return algebra.after(operator_of(own, False), self._affine), clamp

    @property
    def _biased(self) -> bool:
        return self._own.bias is not None or any(_has_shift(step) for step in self._after)

    @property
    def _own(self) -> LinearStep:
        step = self.chain.steps[self.place]
        assert isinstance(step, LinearStep)
        return step

    @property
    def _after(self) -> tuple[Step, ...]:
        """The affine steps right behind it."""
        return self.chain.steps[self.place + 1 : self._end]

    @property
    def _affine(self) -> Affine:
        return _affine(self._after, self._own)

    @property
    def _end(self) -> int:
        """The place behind those."""
        end = self.place + 1
        while end < len(self.chain.steps) and _is_affine(self.chain.steps[end]):
            end += 1
        return end

    @property
    def _is_last(self) -> bool:
        return self._end == len(self.chain.steps)

    def _run(self, x: Tensor, end: int) -> Tensor:
        """The chain's value before the step `end`, canonical."""
        h = self._enter(x, self.chain.layout_in)
        for step in self.chain.steps[:end]:
            h = step.keep(h, self.chain.layout)
        return h

    def _beside(self, x: Tensor) -> Tensor | None:
        if self.skip is None or not self._is_last:
            return None
        return self._enter(self.skip(x.clone()), self.chain.layout_out)

    def _enter(self, x: Tensor, source: str) -> Tensor:
        return to_layout(x, source, self.chain.layout) if x.ndim == 4 else x


def operator_fits(
    chain: Chain, skip: Function | None = None, post: ActStep | None = None
) -> Iterator[OperatorFit]:
    """Those of a chain that can be set, in order."""
    for place, step in enumerate(chain.steps):
        if not isinstance(step, LinearStep) or step.derived:
            continue
        if (kept := OperatorFit(chain, place, skip, post)).is_on:
            yield kept


def skip_of(site: Site, block: nn.Module, graph: fx.Graph) -> Function | None:
    """The skip as a function of what enters the site; None where nothing is added."""
    region = site.region
    if region.add is None:
        return None
    return extract(block, graph, region.entry, region.skip[-1]) if region.skip else _same


def _same(x: Tensor) -> Tensor:
    return x


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


def _shift(
    last: LinearStep, after: tuple[Step, ...], bias: Tensor, affine: Affine, on: Tensor
) -> None:
    """Change what shifts the operator, if anything does, so that its bias in all is `bias` (O,).

    Only where the affine steps are `on`.
    """
    change = bias - affine.shift
    if last.bias is not None:
        last.bias[on] = (change[on] / affine.scale[on]).to(last.bias)
        return
    for number in reversed(range(len(after))):
        step = after[number]
        if isinstance(step, NormStep) and _has_shift(step):
            scale = _affine(after[number + 1 :], last).scale
            step.module.bias += torch.where(on, change / scale, 0)  # type: ignore[attr-defined]
            return
