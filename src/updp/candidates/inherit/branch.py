"""The branch of a block made linear: its own operators, with BatchNorms for what was removed.

All padding of a segment sits on its first operator, from the supernet on, so that training sees
exactly what merging yields (DESIGN, rule 3). Between the operators the feature map is then larger
than the baseline's by a border, which shrinks to nothing by the end of the segment.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.algebra import Padding, centre_tap
from updp.blocks import ActStep, Chain, LinearStep, ScaleStep
from updp.candidates.inherit.placement import Placed, place
from updp.candidates.parts.channel_norm import ChannelNorm


class LinearBranch(nn.Module):
    """Runs a chain's steps in their places, on canonical tensors; operators are the block's own."""

    def __init__(
        self,
        chain: Chain,
        segments: tuple[tuple[str, ...], ...],
        shrunk: tuple[str, ...],
        linearise: bool,
    ) -> None:
        super().__init__()
        self.chain = chain
        weight = chain.linears[0].weight
        self.stages, channels = place(chain, segments, frozenset(shrunk), linearise)
        self.norms = nn.ModuleList(
            ChannelNorm(count, chain.layout, weight.device, weight.dtype) for count in channels
        )

    def forward(self, h: Tensor, lam: float = 1.0) -> Tensor:
        """The branch's value, from the baseline's (lambda 0) to the pruned block's (1)."""
        for stage in self.stages:
            h = self._run(stage, _pad(h, stage.pad), lam)
        return h

    def baseline(self, h: Tensor) -> Tensor:
        """What the baseline's branch gives."""
        for stage in self.stages:
            h = stage.step.keep(h, self.chain.layout)
        return h

    def norm_at(self, stage: Placed) -> ChannelNorm | None:
        """The BatchNorm that stands at a place, if one does."""
        norm = None if stage.norm is None else self.norms[stage.norm]
        assert norm is None or isinstance(norm, ChannelNorm)
        return norm

    @torch.no_grad()
    def calibrate(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Start each norm as the best line from what it sees to what the baseline has there.

        A norm before a removed activation is fitted to the activation's output, so that the
        linear branch is near the block's in the mean. Running statistics are those of the given
        value.

        Returns:
            The values of the linear branch and of the baseline's.
        """
        layout, kept = self.chain.layout, h
        for i, stage in enumerate(self.stages):
            h = _pad(h, stage.pad)
            kept = stage.step.keep(kept, layout)
            if (norm := self.norm_at(stage)) is not None:
                target = kept
                for later in self.stages[i + 1 :]:
                    if not isinstance(later.step, ActStep):
                        break
                    target = later.step.keep(target, layout)
                norm.start(h, _crop(h, stage.border), target)
            h = self._run(stage, h, 1.0)
        return h, kept

    def _run(self, stage: Placed, h: Tensor, lam: float) -> Tensor:
        step, layout = stage.step, self.chain.layout
        if isinstance(step, LinearStep):
            return self._linear(stage, step, h, lam)
        if isinstance(step, ScaleStep):
            return step.keep(h, layout)
        norm = self.norm_at(stage)
        pruned = h if norm is None else norm(h)
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


def _only_centre(weight: Tensor) -> Tensor:
    kh, kw = weight.shape[2:]
    return F.pad(centre_tap(weight), (kw // 2, kw // 2, kh // 2, kh // 2))


def _pad(x: Tensor, padding: Padding) -> Tensor:
    return F.pad(x, padding) if any(padding) else x


def _crop(x: Tensor, border: Padding) -> Tensor:
    left, right, top, bottom = (-b for b in border)
    return F.pad(x, (left, right, top, bottom)) if any(border) else x
