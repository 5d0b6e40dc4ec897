"""Fit a linear operator of a chain, in place, to the baseline's value before the next activation.

The operator is fitted together with the affine steps behind it (BatchNorms, scales). Only its
weight and bias, or the shift of a norm, change.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from updp import algebra
from updp.algebra import Affine, Operator
from updp.blocks import ActStep, Chain, LinearStep, NormStep, Step, to_layout
from updp.blocks.folding import affine_of, operator_of
from updp.blocks.reading.steps import is_affine
from updp.fit.clamp import Clamp, clamp_of
from updp.fit.fit_task import FitTask, as_maps
from updp.fit.regression import Fitted, Regression
from updp.recipe import FitSettings

_SAME = 1e-5  # relative tolerance in float32 for two tensors that differ by a factor per channel
_OFF = 1e-6  # below this scale a channel is off, and its weights cannot be computed from outputs
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FittableOperator:
    """The linear step `place` of a chain, with the affine steps behind it.

    If no other steps are behind it, `skip` (a function of the site's input) is added to its
    output, and `post` is the activation at the end of the block. `enter` computes the chain's input
    from the site's and its extras, where that is not the same.
    """

    chain: Chain
    place: int
    skip: Function | None = None
    post: ActStep | None = None
    enter: Callable[..., Tensor] | None = None

    def fit_task(self, settings: FitSettings, batches: int) -> FitTask:
        """The regression task for this operator over `batches` calibration batches."""
        regression = Regression(*self._prior_and_clamp, settings, batches, biased=self._biased)
        return self._task(regression, self.set)

    def narrowing_tasks(
        self,
        settings: FitSettings,
        batches: int,
        keep: int,
        cut: Callable[[Tensor], None],
        *,
        gated: bool,
        unit: int = 1,
    ) -> list[FitTask]:
        """Regression tasks that leave the operator `keep` of its input channels.

        Args:
            batches: number of calibration batches.
            keep: number of input channels that stay.
            cut: removes all channels but those of the indices it is called with from the modules.
            gated: whether a norm or a gate mixes the channels before the operator. It then reads
                other values after the cut, so a second task fits it to those.
            unit: number of adjoining channels that stay or go together.
        """
        operator, clamp = self._prior_and_clamp
        regression = Regression(
            operator, clamp, settings, batches, biased=self._biased, keep=keep, unit=unit
        )
        narrow = replace(operator, weight=operator.weight[:, :keep])
        again = Regression(narrow, clamp, settings, batches, biased=self._biased)

        def install(fitted: Fitted) -> None:
            assert fitted.channels is not None
            cut(fitted.channels)
            self.set(fitted)
            again.operator = fitted.operator  # the weights that the second task starts from

        first = replace(self._task(regression, install), rows=(self._own.name, self.place))
        tasks = [first, self._task(again, self.set)]
        return tasks if gated else tasks[:1]

    @torch.no_grad()
    def set(self, fitted: Fitted) -> None:
        """Set weights and bias so that operator and affine steps equal `fitted.operator`."""
        own, after, affine = self._own, self._after, self._affine
        on = affine.scale.abs() > _OFF
        new = fitted.operator.weight
        weight = new[on] / affine.scale[on].reshape(-1, *[1] * (new.ndim - 1))
        own.weight[on] = weight.reshape_as(own.weight[on]).to(own.weight)
        _shift(own, after, fitted.operator.bias, affine, on)

    @property
    def is_on(self) -> bool:
        """Whether the scale of the affine steps is nonzero for every output channel."""
        return bool(self._affine.scale.abs().min() > _OFF)

    def fits_into(self, settings: FitSettings) -> bool:
        """Whether its normal matrix takes at most a quarter of the memory for rows."""
        unknowns = self._own.weight[0].numel() + 1
        return self._own.groups * unknowns**2 * 8 <= settings.rows_mb * 2**20 / 4

    def _task(self, regression: Regression, install: Callable[[Fitted], None]) -> FitTask:
        layout = self.chain.layout

        def target(x: Tensor, *extras: Any) -> Tensor:
            h, skip = self._run(self._end, x, *extras), self._skip_value(x)
            return as_maps(h if skip is None else h + skip, layout)

        def inputs(x: Tensor, *extras: Any) -> tuple[Tensor, Tensor | None]:
            skip = self._skip_value(x)
            h = as_maps(self._run(self.place, x, *extras), layout)
            return h, None if skip is None else as_maps(skip, layout)

        return FitTask(self._own.name, regression, target, inputs, install)

    @property
    def _prior_and_clamp(self) -> tuple[Operator, Clamp]:
        """The operator with its affine steps, and the activation behind them as a clamp."""
        behind = self.post if self._is_last else self.chain.steps[self._end]
        function = behind.function if isinstance(behind, ActStep) else None
        clamp = clamp_of(function, self._own.weight)
        return algebra.after(operator_of(self._own), self._affine), clamp

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
        """The affine steps right behind the operator."""
        return self.chain.steps[self.place + 1 : self._end]

    @property
    def _affine(self) -> Affine:
        return _affine(self._after, self._own)

    @property
    def _end(self) -> int:
        """Index of the first step behind the affine steps."""
        end = self.place + 1
        while end < len(self.chain.steps) and is_affine(self.chain.steps[end]):
            end += 1
        return end

    @property
    def _is_last(self) -> bool:
        return self._end == len(self.chain.steps)

    def _run(self, end: int, x: Tensor, *extras: Any) -> Tensor:
        """Value in the chain before its step `end`, in the canonical layout."""
        x = x if self.enter is None else self.enter(x.clone(), *extras)
        h = to_layout(x, self.chain.layout_in, self.chain.layout)
        for step in self.chain.steps[:end]:
            h = step.keep(h, self.chain.layout)
        return h

    def _skip_value(self, x: Tensor) -> Tensor | None:
        """Value of the skip, which is added to the operator's output, in the canonical layout."""
        if self.skip is None or not self._is_last:
            return None
        return to_layout(self.skip(x.clone()), self.chain.layout_out, self.chain.layout)


def operator_fits(
    chain: Chain, skip: Function | None = None, post: ActStep | None = None
) -> Iterator[FittableOperator]:
    """The operators of a chain whose weights can be set, in order."""
    for place, step in enumerate(chain.steps):
        if not isinstance(step, LinearStep) or step.derived:
            continue
        if (fit := FittableOperator(chain, place, skip, post)).is_on:
            yield fit


def channel_factor(y: Tensor, output: Tensor, layout: str) -> Tensor | None:
    """Factor per channel, (C,), that turns a tensor into `output`.

    None where there is no such factor, or where it is zero for a channel.
    """
    if y.shape != output.shape:
        return None
    channel = 1 if layout == "first" else -1
    if torch.equal(y, output):  # also where a channel is zero
        return torch.ones(y.shape[channel], dtype=torch.float64, device=y.device)
    rows, wanted = (t.detach().movedim(channel, -1).flatten(0, -2).double() for t in (y, output))
    factor = (rows * wanted).sum(0) / rows.square().sum(0).clamp_min(torch.finfo(rows.dtype).tiny)
    same = (rows * factor - wanted).norm() <= _SAME * wanted.norm()
    return factor if same and factor.abs().min() > _OFF else None


def _has_shift(step: Step) -> bool:
    return isinstance(step, NormStep) and step.module.bias is not None  # type: ignore[attr-defined]


def _affine(after: tuple[Step, ...], last: LinearStep) -> Affine:
    ones = last.weight.new_ones(last.out_channels, dtype=torch.float64)
    total = Affine(ones, torch.zeros_like(ones))
    for step in after:
        total = algebra.chain(total, affine_of(step, ones))
    return total


def _shift(
    last: LinearStep, after: tuple[Step, ...], bias: Tensor, affine: Affine, on: Tensor
) -> None:
    """Set the bias (O,) of the operator with its affine steps, for the channels in `on`.

    The change goes into the operator's own bias, else into the shift of the last norm that has one.
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
