"""The trainable form of an inherited candidate.

All padding of a segment sits on its first operator, from the supernet on, so that training sees
exactly what merging yields (DESIGN, rule 3). Between the operators the feature map is then larger
than the baseline's by a border, which shrinks to nothing by the end of the segment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from updp import algebra
from updp.algebra import Affine, Operator, Padding, centre_tap
from updp.blocks import ActStep, Chain, LinearStep, ScaleStep, Site, to_layout
from updp.blocks.folding import chain_operator, factor_of, fold_norm, operator_of
from updp.blocks.surgery import extract
from updp.candidates.base import Form
from updp.candidates.inherit.collapsed import Collapsed
from updp.candidates.inherit.placement import Placed, place
from updp.candidates.parts.channel_norm import ChannelNorm
from updp.candidates.parts.merged_block import MergedBlock
from updp.fit import Regression, clamp_of
from updp.fit.fitting import FitTask, as_maps
from updp.recipe import FitSettings


class InheritForm(Form):
    """A branch made linear, with its skip, a BatchNorm and the end activation. See `Inherit`."""

    def __init__(
        self,
        site: Site,
        block: nn.Module,
        graph: fx.Graph,
        segments: tuple[tuple[str, ...], ...],
        shrunk: tuple[str, ...],
        activation: ActStep | None,
        linearise: bool,
    ) -> None:
        super().__init__()
        self.chain = site.chain
        self.skip_chain: Chain | None = site.skip
        self.post, self.activation = site.post, activation
        # In a list, so that modules of the block are reached and not owned.
        self._skip: list[Callable[[Tensor], Tensor]] = []
        if site.region.add is not None:
            self._skip.append(
                extract(block, graph, site.region.entry, site.region.skip[-1])
                if site.region.skip
                else _same
            )
        weight, layout = self.chain.linears[0].weight, self.chain.layout
        device, dtype = weight.device, weight.dtype
        self.stages, norms = place(self.chain, segments, frozenset(shrunk), linearise)
        self.norms = nn.ModuleList(ChannelNorm(c, layout, device, dtype) for c in norms)
        channels = self.chain.linears[-1].out_channels
        self.end_norm = ChannelNorm(channels, layout, device, dtype)
        self.collapsed: Collapsed | None = None
        self._is_collapsed = False  # else it is only reserved

    def forward(self, x: Tensor, *extras: Any, lam: float = 1.0) -> Tensor:
        """See `Form.forward`."""
        h = self._enter(x)
        if self.collapsed is not None and self._is_collapsed:
            y = self.collapsed(h, self._beside(x))
        else:
            for stage in self.stages:
                h = self._run(stage, _pad(h, stage.pad), lam)
            if (beside := self._beside(x)) is not None:
                h = h + beside
            y = self.end_norm(h)
        if self.activation is not None:
            y = self.activation.function(y)
        if lam < 1 and not self._is_collapsed:
            kept = h if self.post is None else self.post.keep(h, self.chain.layout)
            y = torch.lerp(kept, y, lam)
        return to_layout(y, self.chain.layout, self.chain.layout_out) if x.ndim == 4 else y

    def _enter(self, x: Tensor, layout: str | None = None) -> Tensor:
        """A tensor of the block in the canonical layout."""
        source = layout or self.chain.layout_in
        return to_layout(x, source, self.chain.layout) if x.ndim == 4 else x

    def _beside(self, x: Tensor) -> Tensor | None:
        """The skip's value, canonical."""
        for skip in self._skip:
            return self._enter(skip(x), self.chain.layout_out)
        return None

    def _run(self, stage: Placed, h: Tensor, lam: float) -> Tensor:
        step, layout = stage.step, self.chain.layout
        if isinstance(step, LinearStep):
            return self._linear(stage, step, h, lam)
        if isinstance(step, ScaleStep):
            return step.keep(h, layout)
        pruned = h if stage.norm is None else self.norms[stage.norm](h)
        if lam == 1:
            return pruned
        # What the baseline computes here, it computes on its own, smaller map.
        kept = _pad(step.keep(_crop(h, stage.border), layout), stage.border)
        return torch.lerp(kept, pruned, lam)

    def _linear(self, stage: Placed, step: LinearStep, h: Tensor, lam: float) -> Tensor:
        weight, bias = step.weight, step.bias
        if self.chain.layout == "last":
            return F.linear(h, weight.flatten(1), bias)
        if lam < 1:  # the baseline pads with zeros where this map has values
            h = torch.lerp(_pad(_crop(h, stage.border), stage.border), h, lam)
        ph = pw = 0
        if stage.shrunk and lam < 1:  # the outer taps fade, and pad for themselves
            weight = torch.lerp(weight, _only_centre(weight), lam)
            pw, _, ph, _ = step.padding
        elif stage.shrunk:
            weight = centre_tap(weight)
        return F.conv2d(h, weight, bias, step.stride, (ph, pw), step.dilation, step.groups)

    @torch.no_grad()
    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Start each norm as the best line from what it sees to what the baseline has there.

        A norm before a removed activation is fitted to the activation's output, so that the
        linear branch is near the block's in the mean. Running statistics are those of `x`.
        """
        h = kept = self._enter(x)
        for i, stage in enumerate(self.stages):
            h = _pad(h, stage.pad)
            kept = stage.step.keep(kept, self.chain.layout)
            if stage.norm is not None:
                target = kept
                for later in self.stages[i + 1 :]:
                    if not isinstance(later.step, ActStep):
                        break
                    target = later.step.keep(target, self.chain.layout)
                norm = self.norms[stage.norm]
                assert isinstance(norm, ChannelNorm)
                norm.start(h, _crop(h, stage.border), target)
            h = self._run(stage, h, 1.0)
        if (beside := self._beside(x)) is not None:
            h, kept = h + beside, kept + beside
        self.end_norm.start(h, h, kept)

    @torch.no_grad()
    def collapse(self) -> None:
        """See `Form.collapse`."""
        if not self._is_collapsed:
            self.reserve()
            self._is_collapsed = True

    @torch.no_grad()
    def reserve(self) -> None:
        """See `Form.reserve`."""
        self._is_collapsed = False
        weight = self.chain.linears[0].weight
        now = Collapsed(self.merged(), weight.dtype, weight.device)
        if self.collapsed is None:
            self.collapsed = now
        else:  # an optimiser may hold its parameters
            self.collapsed.load_state_dict(now.state_dict())

    @property
    def is_collapsed(self) -> bool:
        """See `Form.is_collapsed`."""
        return self._is_collapsed

    def expand(self) -> None:
        """See `Form.expand`."""
        self.collapsed, self._is_collapsed = None, False

    def fit_tasks(self, settings: FitSettings, batches: int) -> list[FitTask]:
        """See `Form.fit_tasks`: the last operator is fitted, those before it stay inherited."""
        self.collapse()
        own, layout = self.collapsed, self.chain.layout
        assert own is not None

        def target(x: Tensor, *extras: Any) -> Tensor:
            h = self._enter(x)
            for stage in self.stages:
                h = stage.step.keep(h, layout)
            beside = self._beside(x)
            return as_maps(h if beside is None else h + beside, layout)

        def inputs(x: Tensor, *extras: Any) -> tuple[Tensor, Tensor | None]:
            h = self._enter(x)
            kept = own.kept(h, self._beside(x))
            return as_maps(own.before_last(h), layout), None if kept is None else as_maps(
                kept, layout
            )

        last = own.last
        clamp = clamp_of(self.activation.function if self.activation else None, last.weight)
        regression = Regression(last.operator(), clamp, settings, batches)
        name = self.chain.linears[-1].name
        return [FitTask(name, regression, target, inputs, lambda fitted: last.set(fitted.operator))]

    def merged(self) -> MergedBlock:
        """See `Form.merged`."""
        if self.collapsed is not None and self._is_collapsed:
            return self.collapsed.merged()
        operators: list[Operator] = []
        before: Affine | None = None
        segment = -1
        for stage in self.stages:
            if isinstance(stage.step, LinearStep):
                operator = operator_of(stage.step, stage.shrunk)
                if stage.segment == segment:
                    operators[-1] = algebra.compose(operators[-1], operator)
                else:
                    operators.append(operator)
                segment = stage.segment
            elif (affine := self._affine(stage, operators)) is None:
                continue
            elif operators:
                operators[-1] = algebra.after(operators[-1], affine)
            else:
                before = affine if before is None else algebra.chain(before, affine)
        if before is not None:
            operators[0] = algebra.before(before, operators[0])
        end = fold_norm(self.end_norm)
        skip = self._merge_skip(operators, end)
        operators[-1] = algebra.after(operators[-1], end)
        chain = self.chain
        layouts = chain.layout, chain.layout_in, chain.layout_out
        return MergedBlock(tuple(operators), skip, self.activation, *layouts)

    def _merge_skip(self, operators: list[Operator], end: Affine) -> Operator | Tensor | None:
        """Take the skip into a single operator, in place; else return what stays beside it.

        end(branch + skip) = scale * branch + shift + scale * skip.
        """
        if not self._skip:
            return None
        first = operators[0]
        beside = None
        if self.skip_chain is not None:
            beside = chain_operator(self.skip_chain, first.in_channels, first.weight.device)
        if beside is not None and len(operators) == 1:
            try:
                operators[0] = algebra.add(operators[0], beside)
                return None
            except ValueError:  # strides or sizes differ: it stays an add
                pass
        if beside is None or self.skip_chain is None or not self.skip_chain.steps:
            return end.scale
        return algebra.after(beside, Affine(end.scale, torch.zeros_like(end.shift)))

    def _affine(self, stage: Placed, operators: list[Operator]) -> Affine | None:
        if isinstance(stage.step, ScaleStep):
            if operators:
                return factor_of(stage.step, operators[-1].bias)
            first = self.chain.linears[0]
            like = first.weight.new_empty(first.in_channels, dtype=torch.float64)
            return factor_of(stage.step, like)
        if stage.norm is None:
            return None
        return fold_norm(self.norms[stage.norm])


def _only_centre(weight: Tensor) -> Tensor:
    kh, kw = weight.shape[2:]
    return F.pad(centre_tap(weight), (kw // 2, kw // 2, kh // 2, kh // 2))


def _pad(x: Tensor, padding: Padding) -> Tensor:
    return F.pad(x, padding) if any(padding) else x


def _crop(x: Tensor, border: Padding) -> Tensor:
    left, right, top, bottom = (-b for b in border)
    return F.pad(x, (left, right, top, bottom)) if any(border) else x


def _same(x: Tensor) -> Tensor:
    return x
