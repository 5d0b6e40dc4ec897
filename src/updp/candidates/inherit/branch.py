"""The branch of a block made linear: its own operators, with BatchNorms for removed steps.

All padding of a segment moves to its first operator, already in the supernet, so that training
computes what merging yields (docs/concepts/merging.md, *Padding*). Between the operators the
feature map is then larger than the baseline's by a border, which shrinks to nothing by the end of
the segment.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.algebra import Padding, Size, centre_tap, convolve, padding_of, sides_of
from updp.blocks import ActStep, Chain, LinearStep, ScaleStep, ShuffleStep
from updp.candidates.base import blend
from updp.candidates.inherit.placement import Placed, place
from updp.candidates.parts.channel_norm import ChannelNorm


class LinearBranch(nn.Module):
    """A chain made linear, on tensors in the canonical layout; its operators are the block's own.

    `segments`, `shrunk` and `linearise` are as in `Inherit`.
    """

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
        self.placed, channels = place(chain, segments, frozenset(shrunk), linearise)
        self.norms = nn.ModuleList(
            ChannelNorm(count, chain.layout, weight.device, weight.dtype) for count in channels
        )

    def forward(self, h: Tensor, lam: float = 1.0) -> Tensor:
        """Return the branch's value: the baseline's at lambda 0, the pruned block's at 1."""
        for placed in self.placed:
            h = self._run(placed, _pad(h, placed.pad), lam)
        return h

    def baseline(self, h: Tensor) -> Tensor:
        """Return the value of the baseline's branch."""
        for placed in self.placed:
            h = placed.step.keep(h, self.chain.layout)
        return h

    def norm_at(self, placed: Placed) -> ChannelNorm | None:
        """Return the form's own BatchNorm at a place, if there is one."""
        norm = None if placed.norm is None else self.norms[placed.norm]
        assert norm is None or isinstance(norm, ChannelNorm)
        return norm

    @torch.no_grad()
    def calibrate(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Start each norm as the least-squares line from its input to the baseline's value there.

        A norm before a removed activation is fitted to the activation's output, so that the
        linear branch is near the block's in the mean. Its running statistics are its input's.
        Returns the values of the linear branch and of the baseline's.
        """
        layout, kept = self.chain.layout, h
        for i, placed in enumerate(self.placed):
            h = _pad(h, placed.pad)
            kept = placed.step.keep(kept, layout)
            if (norm := self.norm_at(placed)) is not None:
                target = kept
                for later in self.placed[i + 1 :]:
                    if not isinstance(later.step, ActStep):
                        break
                    target = later.step.keep(target, layout)
                norm.start(h, _crop(h, placed.border), target)
            h = self._run(placed, h, 1.0)
        return h, kept

    def _run(self, placed: Placed, h: Tensor, lam: float) -> Tensor:
        step, layout = placed.step, self.chain.layout
        if isinstance(step, LinearStep):
            return self._linear(placed, step, h, lam)
        if isinstance(step, (ScaleStep, ShuffleStep)):
            return step.keep(h, layout)
        norm = self.norm_at(placed)
        pruned = h if norm is None else norm(h)
        if lam == 1:
            return pruned
        # The baseline's step runs on its own map, which has no border.
        kept = _pad(step.keep(_crop(h, placed.border), layout), placed.border)
        return blend(kept, pruned, lam)

    def _linear(self, placed: Placed, step: LinearStep, h: Tensor, lam: float) -> Tensor:
        weight, bias = step.weight, step.bias
        if self.chain.layout == "last":
            return F.linear(h, weight.flatten(1), bias)
        if lam < 1:  # where this map has a border, the baseline has zero padding
            h = torch.lerp(_pad(_crop(h, placed.border), placed.border), h, lam)
        padding: Size = (0,) * self.chain.dims
        if placed.shrunk and lam < 1:  # the outer taps fade, and need padding of their own
            weight = torch.lerp(weight, _only_centre(weight), lam)
            padding = tuple(before for before, _ in sides_of(step.padding))
        elif placed.shrunk:
            weight = centre_tap(weight)
        return convolve(h, weight, bias, step.stride, padding, step.dilation, step.groups)


def _only_centre(weight: Tensor) -> Tensor:
    """Set all but the centre tap of weight (O, I / groups, kh, kw) to zero."""
    return F.pad(centre_tap(weight), padding_of((k // 2, k // 2) for k in weight.shape[2:]))


def _pad(x: Tensor, padding: Padding) -> Tensor:
    return F.pad(x, padding) if any(padding) else x


def _crop(x: Tensor, border: Padding) -> Tensor:
    return F.pad(x, tuple(-b for b in border)) if any(border) else x
