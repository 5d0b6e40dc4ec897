"""A linear operator on feature maps: a convolution as data."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, float64, nn

Pair = tuple[int, int]
Padding = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False, repr=False)
class Operator:
    """A convolution as data; a token-wise linear layer is one with a 1x1 kernel.

    Per axis, with `before` the left or top padding and x zero outside its edges:

        y[o, p] = bias[o] + sum of weight[o, i, t] * x[i, p * stride + t * dilation - before]

    weight:   (O, I / groups, kh, kw), float64
    bias:     (O,), float64; zeros where the layer has none
    stride:   (vertical, horizontal), as is dilation
    padding:  (left, right, top, bottom) pixels, as in `torch.nn.functional.pad`; negative crops
    """

    weight: Tensor
    bias: Tensor
    stride: Pair = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        assert self.weight.dtype == self.bias.dtype == float64, "an Operator holds float64"
        assert self.weight.ndim == 4, self.weight.shape
        assert self.bias.shape == self.weight.shape[:1], (self.weight.shape, self.bias.shape)
        assert self.out_channels % self.groups == 0, (self.out_channels, self.groups)

    @property
    def in_channels(self) -> int:
        """I, the channels it reads."""
        return self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """O, the channels it writes."""
        return self.weight.shape[0]

    @property
    def kernel_size(self) -> Pair:
        """(kh, kw), in taps: dilation does not count."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel reads the input pixel at its own place and nothing else."""
        return self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0, 0, 0)

    @property
    def slack(self) -> Pair:
        """(vertical, horizontal) padding less reach: stride-1 output size less input size."""
        left, right, top, bottom = self.padding
        (kh, kw), (dh, dw) = self.kernel_size, self.dilation
        return top + bottom - dh * (kh - 1), left + right - dw * (kw - 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x (N, I, H, W), in the dtype and on the device of x; gives (N, O, H', W')."""
        weight, bias = self.weight.to(x), self.bias.to(x)
        x = F.pad(x, self.padding)
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)

    def output_size(self, height: int, width: int) -> Pair:
        """Return (H', W') for an input of (height, width)."""
        (sh, sw), (slack_h, slack_w) = self.stride, self.slack
        return (height + slack_h - 1) // sh + 1, (width + slack_w - 1) // sw + 1

    def macs(self, height: int, width: int) -> int:
        """Return the multiply-accumulates of one image of (height, width); the bias is free."""
        out_height, out_width = self.output_size(height, width)
        return self.weight.numel() * out_height * out_width

    def __repr__(self) -> str:
        (kh, kw), channels = self.kernel_size, f"{self.in_channels}->{self.out_channels}"
        return (
            f"Operator({channels}, kernel={kh}x{kw}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups})"
        )


def from_conv(
    conv: nn.Conv2d, weight: Tensor | None = None, padding: Padding | None = None
) -> Operator:
    """Read a convolution layer.

    A subclass that changes its weight or pads in `forward` (weight standardisation, timm's
    `Conv2dSame`) does not show that in its attributes: pass the `weight` (O, I / groups, kh, kw)
    and the `padding` it really uses. A weight of another kernel size needs its own padding.
    """
    if conv.padding_mode != "zeros":
        raise ValueError(f"padding_mode={conv.padding_mode!r} cannot be merged, only 'zeros' can")
    weight = conv.weight if weight is None else weight
    if padding is None and weight.shape[2:] != conv.weight.shape[2:]:
        raise ValueError(
            f"weight {tuple(weight.shape)} in place of {tuple(conv.weight.shape)} changes the "
            "kernel size: pass padding as well"
        )
    return Operator(
        *_data(weight, conv.bias),
        stride=(conv.stride[0], conv.stride[1]),
        padding=(*_sides(conv, 1), *_sides(conv, 0)) if padding is None else padding,
        dilation=(conv.dilation[0], conv.dilation[1]),
        groups=conv.groups,
    )


def from_linear(linear: nn.Linear) -> Operator:
    """Read a linear layer on tokens or channels as a 1x1 convolution."""
    return Operator(*_data(linear.weight[:, :, None, None], linear.bias))


def _data(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Copy to float64 without gradient, so that training on does not change the operator."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return weight.detach().to(float64, copy=True), bias.detach().to(float64, copy=True)


def _sides(conv: nn.Conv2d, axis: int) -> Pair:
    """Return the padding before and behind; 'same' puts the odd pixel behind, as torch does."""
    if conv.padding == "same":
        total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    pixels = 0 if isinstance(conv.padding, str) else conv.padding[axis]
    return pixels, pixels
