"""`drop`: leave out the branch; a BatchNorm makes up for its mean effect on each channel.

This is layer dropping with the paper's end BatchNorm (UPDP, arXiv 2401.06426, *Progressive subnet
training*), which starts as the least-squares line of each channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from updp.algebra import Affine, as_operator
from updp.blocks import Site, TracedSite
from updp.blocks.folding import fold_norm
from updp.blocks.modules import like_of
from updp.candidates import ranks
from updp.candidates.base import Candidate, Form, blend
from updp.candidates.parts.channel_norm import ChannelNorm
from updp.candidates.parts.merged_block import MergedSkip
from updp.fit import Fitted, Regression, clamp_of
from updp.fit.fit_task import FitTask, as_maps
from updp.recipe import CandidateSettings, FitSettings


@dataclass(frozen=True)
class Drop(Candidate):
    """A block without its branch: a BatchNorm on its skip, then its own activation."""

    kind: ClassVar[str] = "drop"

    @property
    def rank(self) -> int:
        """Higher than that of every candidate that keeps something of the branch."""
        return ranks.DROP

    @classmethod
    def propose(cls, traced: TracedSite, settings: CandidateSettings) -> Iterator[Drop]:
        """Yield one, if the skip has the shape of the block's output."""
        if settings.drop != "never" and cls().fits(traced.site):
            yield cls()

    def fits(self, site: Site) -> bool:
        """Whether the site is a residual branch, or keeps its tensor's shape and layout."""
        if site.region.add is not None:
            return True
        same_layout = site.branch is None or site.branch.layout_in == site.branch.layout_out
        return site.shape_in == site.shape_out and same_layout

    def build(self, traced: TracedSite) -> DropForm:
        """See `Candidate.build`."""
        return DropForm(traced)


class DropForm(Form):
    """The block's skip, a BatchNorm, and the block's activation (`post`)."""

    def __init__(self, traced: TracedSite) -> None:
        site = traced.site
        super().__init__()
        region = site.region
        self.post, self._needs_contiguous = site.post, site.needs_contiguous(site.layout)
        skip = traced.skip() if region.skip else None  # the identity needs no copy of its input
        self._skip: list[Callable[[Tensor], Tensor]] = [] if skip is None else [skip]
        self._is_added, self._dims = region.add is not None, site.dims
        keep = traced.whole()
        branch = traced.until(region.branch[-1])
        self._keep: list[Callable[..., Tensor]] = [keep]
        self._branch: list[Callable[..., Tensor]] = [branch]
        self._chain = site.branch
        weight = like_of(traced.block)
        self.norm = ChannelNorm(site.channels, site.layout, weight.device, weight.dtype)

    def forward(self, x: Tensor, *extras: Any, lam: float = 1.0) -> Tensor:
        """See `Form.forward`."""
        y: Tensor = self.norm(self._beside(x))
        if self.post is not None:
            y = self.post.function(y)
        y = y.contiguous() if self._needs_contiguous else y
        # After the form, for the block may work in place on x.
        if lam < 1:
            y = blend(self._keep[0](x, *extras), y, lam)
        return y

    def _beside(self, x: Tensor) -> Tensor:
        """Return the skip's value; the input itself for an identity, or a block without a skip."""
        for skip in self._skip:
            x = skip(x.clone())
        return x

    @torch.no_grad()
    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Start the BatchNorm as the least-squares line from the skip to the baseline's output."""
        beside = self._beside(x)
        self.norm.start(beside, beside, self._target(x, *extras))

    def _target(self, x: Tensor, *extras: Any) -> Tensor:
        """Return the baseline's value before its end activation."""
        if self._is_added:
            return self._beside(x) + self._branch[0](x.clone(), *extras)
        if self._chain is not None:
            return self._chain.keep(x)
        return self._branch[0](x.clone(), *extras)

    def fit_tasks(self, settings: FitSettings, batches: int) -> list[FitTask]:
        """See `Form.fit_tasks`: one regression, of a factor and a shift per channel."""
        norm, layout = self.norm, self.norm.layout
        clamp = clamp_of(self.post.function if self.post else None, norm.weight)

        def install(fitted: Fitted) -> None:
            norm.set(Affine(fitted.operator.weight.flatten(), fitted.operator.bias))

        task = FitTask(
            "drop",
            Regression(as_operator(fold_norm(norm), self._dims), clamp, settings, batches),
            lambda x, *extras: as_maps(self._target(x, *extras), layout),
            lambda x, *extras: (as_maps(self._beside(x), layout), None),
            install,
        )
        return [task]

    def merged(self) -> MergedSkip:
        """See `Form.merged`."""
        return MergedSkip(fold_norm(self.norm), self.post, self.norm.layout)
