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
        """Input channels, I."""
        return self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """Output channels, O."""
        return self.weight.shape[0]

    @property
    def kernel_size(self) -> Pair:
        """Taps (kh, kw); dilation does not count."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel reads the input pixel at its own place and nothing else."""
        return self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0, 0, 0)

    @property
    def slack(self) -> Pair:
        """Stride-1 output size less input size, (vertical, horizontal): padding less reach."""
        left, right, top, bottom = self.padding
        (kh, kw), (dh, dw) = self.kernel_size, self.dilation
        return top + bottom - dh * (kh - 1), left + right - dw * (kw - 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x (N, I, H, W), in the dtype and on the device of x; return (N, O, H', W')."""
        weight, bias = self.weight.to(x), self.bias.to(x)
        x = F.pad(x, self.padding)
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)

    def __repr__(self) -> str:
        (kh, kw), channels = self.kernel_size, f"{self.in_channels}->{self.out_channels}"
        return (
            f"Operator({channels}, kernel={kh}x{kw}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups})"
        )


def from_linear(linear: nn.Linear) -> Operator:
    """Read a linear layer on tokens or channels as a 1x1 convolution.

    Its tensors are copied, so that training the layer on does not change the operator.
    """
    weight = linear.weight.detach()[:, :, None, None].to(float64, copy=True)
    if linear.bias is None:
        return Operator(weight, weight.new_zeros(len(weight)))
    return Operator(weight, linear.bias.detach().to(float64, copy=True))
