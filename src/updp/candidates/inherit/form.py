"""The trainable form of an inherited candidate, on the block's weights or on merged ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from updp import algebra
from updp.blocks import ActStep, TracedSite, to_layout
from updp.blocks.folding import fold_norm
from updp.candidates.base import Form, FormShape, blend
from updp.candidates.inherit.branch import LinearBranch
from updp.candidates.inherit.collapsed import Collapsed
from updp.candidates.inherit.merging import free_weights, merge_branch, merge_skip
from updp.candidates.parts.channel_norm import ChannelNorm
from updp.candidates.parts.merged_block import MergedBlock
from updp.fit import FitTask, Regression, as_maps, clamp_of
from updp.recipe import FitSettings


class InheritForm(Form):
    """A branch made linear, with its skip, a BatchNorm and the end activation.

    `branch` is the site's chain made linear, `activation` ends the block (None: no activation).
    """

    def __init__(
        self,
        traced: TracedSite,
        branch: LinearBranch,
        activation: ActStep | None,
    ) -> None:
        site = traced.site
        super().__init__()
        self.chain, self.skip_chain, self.post = site.chain, site.skip, site.post
        self.activation = activation
        self._needs_contiguous = site.needs_contiguous(site.chain.layout)
        skip = traced.skip()
        self._skip: list[Callable[[Tensor], Tensor]] = [] if skip is None else [skip]
        self.branch = branch
        last = self.chain.linears[-1]
        weight = self.chain.linears[0].weight
        layout = self.chain.layout
        self.end_norm = ChannelNorm(last.out_channels, layout, weight.device, weight.dtype)
        self.collapsed: Collapsed | None = None
        self._shape: FormShape = "factored"

    def forward(self, x: Tensor, *extras: Any, lam: float = 1.0) -> Tensor:
        """See `Form.forward`."""
        h = self._enter(x)
        if self._shape == "collapsed":
            y = self._merged_weights(h, self._beside(x))
        else:
            h = self.branch(h, lam)
            if (beside := self._beside(x)) is not None:
                h = h + beside
            y = self.end_norm(h)
        if self.activation is not None:
            y = self.activation.function(y)
        if lam < 1 and self._shape != "collapsed":
            kept = h if self.post is None else self.post.keep(h, self.chain.layout)
            y = blend(kept, y, lam)
        y = to_layout(y, self.chain.layout, self.chain.layout_out)
        return y.contiguous() if self._needs_contiguous else y

    @torch.no_grad()
    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """See `Form.calibrate`; each norm starts as the least-squares line to the baseline."""
        h, kept = self.branch.calibrate(self._enter(x))
        if (beside := self._beside(x)) is not None:
            h, kept = h + beside, kept + beside
        self.end_norm.start(h, h, kept)

    @property
    def shape(self) -> FormShape:
        """See `Form.shape`."""
        return self._shape

    @torch.no_grad()
    def set_shape(self, shape: FormShape) -> None:
        """See `Form.set_shape`."""
        if shape == "factored":
            self.collapsed = None
        elif (self._shape, shape) != ("collapsed", "collapsed"):
            self._shape = "factored"  # so that `merged` reads the block's own weights
            free = free_weights(self.branch, self.skip_chain if self._skip else None)
            merged = Collapsed(self.merged(), self.chain.linears[0].weight, free)
            if self.collapsed is None:
                # Frozen with the form's other parameters: see `Supernet`.
                self.collapsed = merged.requires_grad_(self.end_norm.weight.requires_grad)
            else:  # copied: an optimiser may hold these parameters
                self.collapsed.load_state_dict(merged.state_dict())
        self._shape = shape

    def fit_tasks(self, settings: FitSettings, batches: int) -> list[FitTask]:
        """See `Form.fit_tasks`: the last operator is fitted, the others stay inherited."""
        self.set_shape("collapsed")
        collapsed, layout = self._merged_weights, self.chain.layout

        def target(x: Tensor, *extras: Any) -> Tensor:
            h, beside = self.branch.baseline(self._enter(x)), self._beside(x.clone())
            return as_maps(h if beside is None else h + beside, layout)

        def inputs(x: Tensor, *extras: Any) -> tuple[Tensor, Tensor | None]:
            h = self._enter(x)
            # The skip may change its input in place, and `h` is a view of `x`.
            added = collapsed.skip_value(h, self._beside(x.clone()))
            read = as_maps(collapsed.before_last(h), layout)
            return read, None if added is None else as_maps(added, layout)

        last = collapsed.last
        clamp = clamp_of(self.activation.function if self.activation else None, last.weight)
        regression = Regression(last.operator(), clamp, settings, batches, free=last.free)
        name = self.chain.linears[-1].name
        return [FitTask(name, regression, target, inputs, lambda fitted: last.set(fitted.operator))]

    def merged(self) -> MergedBlock:
        """See `Form.merged`."""
        if self._shape == "collapsed":
            return self._merged_weights.merged()
        operators, end = merge_branch(self.branch), fold_norm(self.end_norm)
        skip = merge_skip(operators, self.skip_chain, end) if self._skip else None
        operators[-1] = algebra.after(operators[-1], end)
        chain = self.chain
        layouts = chain.layout, chain.layout_in, chain.layout_out
        return MergedBlock(tuple(operators), skip, self.activation, *layouts)

    @property
    def _merged_weights(self) -> Collapsed:
        assert self.collapsed is not None
        return self.collapsed

    def _enter(self, x: Tensor, layout: str | None = None) -> Tensor:
        """Convert a tensor from a layout, by default that of the entry, to the canonical one."""
        return to_layout(x, layout or self.chain.layout_in, self.chain.layout)

    def _beside(self, x: Tensor) -> Tensor | None:
        """Return the skip's value in the canonical layout; None without a skip."""
        for skip in self._skip:
            return self._enter(skip(x), self.chain.layout_out)
        return None
