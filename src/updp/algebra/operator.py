"""A linear operator on feature maps: a convolution in any number of dimensions as data."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, float64, nn

Size = tuple[int, ...]  # one number per axis of a map, in its order: (vertical, horizontal)
Padding = tuple[int, ...]  # two per axis, as in `torch.nn.functional.pad`: the last axis first
_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@dataclass(frozen=True, eq=False, repr=False)
class Operator:
    """A convolution as data; a token-wise linear layer is one with a 1x1 kernel.

    Per axis, with `before` the left or top padding and x zero outside its edges:

        y[o, p] = bias[o] + sum of weight[o, i, t] * x[i, p * stride + t * dilation - before]

    weight:   (O, I / groups, kh, kw), float64; with one axis or three for sequences or volumes
    bias:     (O,), float64; zeros if the layer has no bias
    stride:   (vertical, horizontal), the same for dilation; both are 1 by default
    padding:  (left, right, top, bottom) pixels, as in `torch.nn.functional.pad`; negative crops
    """

    weight: Tensor
    bias: Tensor
    stride: Size = ()
    padding: Padding = ()
    dilation: Size = ()
    groups: int = 1

    def __post_init__(self) -> None:
        assert self.weight.dtype == self.bias.dtype == float64, "an Operator holds float64"
        assert self.bias.shape == self.weight.shape[:1], (self.weight.shape, self.bias.shape)
        assert self.out_channels % self.groups == 0, (self.out_channels, self.groups)
        ones, none = (1,) * self.dims, (0, 0) * self.dims
        for name, default in (("stride", ones), ("padding", none), ("dilation", ones)):
            if not getattr(self, name):
                object.__setattr__(self, name, default)
            assert len(getattr(self, name)) == len(default), (name, getattr(self, name))

    @property
    def dims(self) -> int:
        """Number of axes of a map: 2 for images."""
        return self.weight.ndim - 2

    @property
    def in_channels(self) -> int:
        """Input channels, I."""
        return self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """Output channels, O."""
        return self.weight.shape[0]

    @property
    def kernel_size(self) -> Size:
        """Taps (kh, kw) without the gaps of dilation."""
        return tuple(self.weight.shape[2:])

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel reads only the input pixel at the same position."""
        return {*self.kernel_size, *self.stride} == {1} and not any(self.padding)

    @property
    def slack(self) -> Size:
        """Stride-1 output size minus input size, (vertical, horizontal): padding minus reach."""
        axes = zip(sides_of(self.padding), self.kernel_size, self.dilation, strict=True)
        return tuple(sum(side) - d * (k - 1) for side, k, d in axes)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x (N, I, H, W), in the dtype and on the device of x; return (N, O, H', W')."""
        x = F.pad(x, self.padding)
        weight, bias = self.weight.to(x), self.bias.to(x)
        return convolve(x, weight, bias, self.stride, dilation=self.dilation, groups=self.groups)

    def __repr__(self) -> str:
        kernel, channels = "x".join(map(str, self.kernel_size)), f"{self.in_channels}->"
        return (
            f"Operator({channels}{self.out_channels}, kernel={kernel}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups})"
        )


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: int | Size = 0,
    dilation: Size | int = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve x (N, I, ...) with weight (O, I / groups, ...) in one, two or three dimensions."""
    function = _CONVOLUTIONS[weight.ndim]
    return function(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]


def sides_of(padding: Padding) -> tuple[tuple[int, int], ...]:
    """Padding (before, behind) of each axis, in the order of the axes."""
    return tuple(zip(padding[::2], padding[1::2], strict=True))[::-1]


def padding_of(sides: Iterable[tuple[int, int]]) -> Padding:
    """Return the padding tuple for (before, behind) of each axis: the inverse of `sides_of`."""
    return tuple(p for side in reversed(tuple(sides)) for p in side)


def from_linear(linear: nn.Linear) -> Operator:
    """Read a linear layer on tokens or channels as a 1x1 convolution.

    Its tensors are copied, so that further training of the layer does not change the operator.
    """
    weight = linear.weight.detach()[:, :, None, None].to(float64, copy=True)
    if linear.bias is None:
        return Operator(weight, weight.new_zeros(len(weight)))
    return Operator(weight, linear.bias.detach().to(float64, copy=True))
