"""Kernels shrunk to 1x1, so that merging them with a neighbour does not widen its kernel.

Any dtype, and differentiable: in training the shrunk kernel is read from the shared weight.
"""

from torch import Tensor

from updp.algebra.operator import Padding, Pair


def centre_tap(weight: Tensor) -> Tensor:
    """Return the middle tap of weight (O, I / groups, kh, kw) as (O, I / groups, 1, 1).

    Of an even kernel, the tap that 'same' padding puts on the output's own pixel.
    """
    y, x = ((k - 1) // 2 for k in weight.shape[2:])
    return weight[:, :, y : y + 1, x : x + 1]


def spatial_sum(weight: Tensor) -> Tensor:
    """Return the sum over taps of weight (O, I / groups, kh, kw) as (O, I / groups, 1, 1).

    It answers a constant input as the whole kernel does.
    """
    return weight.sum((2, 3), keepdim=True)


def can_shrink(kernel_size: Pair, padding: Padding, dilation: Pair) -> bool:
    """Return whether a 1x1 kernel without padding keeps the output size and the centre's pixel.

    So it is, for any stride, where the kernel is odd and both sides are padded by half its reach:
    `k % 2 == 1` and `2 p = d (k - 1)` per axis.
    """
    left, right, top, bottom = padding
    sides = (top, bottom), (left, right)
    return all(
        k % 2 == 1 and 2 * before == 2 * behind == d * (k - 1)
        for k, d, (before, behind) in zip(kernel_size, dilation, sides, strict=True)
    )
