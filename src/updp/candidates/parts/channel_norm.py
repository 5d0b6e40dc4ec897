"""The BatchNorm of a pruned block, which replaces any norm of the baseline and folds away."""

import torch
from torch import Tensor, nn

from updp.algebra import Affine


class ChannelNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the channels of (N, C, H, W) in layout `first`, (..., C) in layout `last`."""

    def __init__(
        self,
        channels: int,
        layout: str,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, device=device, dtype=dtype)
        self.layout = layout

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions; torch's own base class accepts none."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x`, keeping its shape."""
        if self.layout == "first":
            return super().forward(x)
        return super().forward(x.flatten(0, -2)).view_as(x)

    @torch.no_grad()
    def start(self, x: Tensor, inner: Tensor, target: Tensor) -> None:
        """Set the statistics from `x`, and weight and bias to bring the output nearest to `target`.

        Per channel it is the least-squares line through (`inner`, `target`), with slope
        `cov(inner, target) / var(inner)`. Both have the same shape in the norm's layout; `inner` is
        `x` without the border that the baseline does not have.
        """
        x, inner, target = (_rows(t, self.layout) for t in (x, inner, target))
        mean, var = x.mean(0), x.var(0, unbiased=False)
        centred = inner - inner.mean(0)
        slope = (centred * target).mean(0) / centred.square().mean(0).clamp_min(1e-12)
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        self.weight.copy_(slope * (var + self.eps).sqrt())
        self.bias.copy_(target.mean(0) - slope * (inner.mean(0) - mean))

    @torch.no_grad()
    def set(self, affine: Affine) -> None:
        """Set weight and bias to compute this affine map (C,) with the current statistics."""
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, var = self.running_mean.double(), self.running_var.double()
        self.weight.copy_(affine.scale * (var + self.eps).sqrt())
        self.bias.copy_(affine.shift + affine.scale * mean)


def _rows(x: Tensor, layout: str) -> Tensor:
    """Return maps as rows (M, C) in float64, with channels as columns."""
    return (x.movedim(1, -1) if layout == "first" else x).flatten(0, -2).double()
