"""`drop`: nothing is left of the branch but its mean effect on each channel.

The block becomes a BatchNorm on its skip and its own activation. This is layer dropping with the
paper's end BatchNorm (UPDP, *Progressive subnet training*), which starts as the best line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from updp.algebra import Affine, as_operator
from updp.blocks import Site
from updp.blocks.folding import fold_norm
from updp.blocks.surgery import extract
from updp.candidates.base import Candidate, Form
from updp.candidates.parts.channel_norm import ChannelNorm
from updp.candidates.parts.merged_block import MergedSkip
from updp.fit import Fitted, Regression, clamp_of
from updp.fit.fitting import FitTask, as_maps
from updp.recipe import CandidateSettings, FitSettings

_LAST = 100  # after every candidate that keeps something of the branch


@dataclass(frozen=True)
class Drop(Candidate):
    """The branch is left out."""

    kind: ClassVar[str] = "drop"

    @property
    def label(self) -> str:
        """`drop`."""
        return self.kind

    @property
    def rank(self) -> int:
        """Last of all."""
        return _LAST

    @classmethod
    def propose(
        cls, site: Site, block: nn.Module, graph: fx.Graph, settings: CandidateSettings
    ) -> Iterator[Drop]:
        """One, where the skip has the shape of the block's output."""
        if settings.drop != "never" and cls().fits(site):
            yield cls()

    def fits(self, site: Site) -> bool:
        """A residual branch, or a block that keeps its tensor's shape and layout."""
        if site.region.add is not None:
            return True
        turned = site.branch is not None and site.branch.layout_in != site.branch.layout_out
        return site.shape_in == site.shape_out and not turned

    def build(self, site: Site, block: nn.Module, graph: fx.Graph) -> DropForm:
        """The trainable form on the given block's own modules."""
        return DropForm(site, block, graph)

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` makes an equal candidate."""
        return {"kind": self.kind}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Drop:
        """The inverse of `to_json`."""
        return cls()


class DropForm(Form):
    """The block's skip, a BatchNorm, and the block's activation."""

    def __init__(self, site: Site, block: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        region = site.region
        self.post = site.post
        # In lists, so that modules of the block are reached and not owned.
        self._skip: list[Callable[[Tensor], Tensor]] = []
        if region.skip:
            self._skip.append(extract(block, graph, region.entry, region.skip[-1]))
        self._is_added = region.add is not None
        self._keep = [extract(block, graph, region.entry, region.exit, region.extras)]
        self._branch = [extract(block, graph, region.entry, region.branch[-1], region.extras)]
        self._chain = site.branch  # what a block without a skip does before its activation
        weight = next(block.parameters(), torch.empty(0))
        self.norm = ChannelNorm(site.channels, site.layout, weight.device, weight.dtype)

    def forward(self, x: Tensor, *extras: Any, lam: float = 1.0) -> Tensor:
        """See `Form.forward`."""
        y = self.norm(self._beside(x))
        if self.post is not None:
            y = self.post.function(y)
        if lam < 1:  # the form first, for the block may work in place on x
            y = torch.lerp(self._keep[0](x, *extras), y, lam)
        return y

    def _beside(self, x: Tensor) -> Tensor:
        for skip in self._skip:
            x = skip(x.clone())
        return x

    @torch.no_grad()
    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Start the BatchNorm as the best line from the skip to the baseline's output."""
        beside = self._beside(x)
        self.norm.start(beside, beside, self._target(x, *extras))

    def _target(self, x: Tensor, *extras: Any) -> Tensor:
        """What the baseline has before its end activation."""
        if self._is_added:
            return self._beside(x) + self._branch[0](x.clone(), *extras)
        if self._chain is not None:
            return self._chain.keep(x)
        return self._branch[0](x.clone(), *extras)

    def fit_tasks(self, settings: FitSettings, batches: int) -> list[FitTask]:
        """See `Form.fit_tasks`: a factor and a shift per channel."""
        norm, layout = self.norm, self.norm.layout
        clamp = clamp_of(self.post.function if self.post else None, norm.weight)

        def take(fitted: Fitted) -> None:
            norm.set(Affine(fitted.operator.weight.flatten(), fitted.operator.bias))

        fitting = FitTask(
            "drop",
            Regression(as_operator(fold_norm(norm)), clamp, settings, batches),
            lambda x, *extras: as_maps(self._target(x, *extras), layout),
            lambda x, *extras: (as_maps(self._beside(x), layout), None),
            take,
        )
        return [fitting]

    def merged(self) -> MergedSkip:
        """See `Form.merged`."""
        return MergedSkip(fold_norm(self.norm), self.post, self.norm.layout)
