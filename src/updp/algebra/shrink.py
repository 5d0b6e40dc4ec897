"""Kernels shrunk to 1x1, so that merging them with a neighbour does not widen its kernel."""

from torch import Tensor

from updp.algebra.operator import Padding, Size, sides_of


def centre_tap(weight: Tensor) -> Tensor:
    """Return the middle tap of weight (O, I / groups, kh, kw) as (O, I / groups, 1, 1).

    An even kernel's middle tap is the one that 'same' padding puts on the output's own pixel. Any
    dtype; differentiable, because training reads the shrunk kernel from the shared weight.
    """
    middle = [slice((k - 1) // 2, (k - 1) // 2 + 1) for k in weight.shape[2:]]
    return weight[(slice(None), slice(None), *middle)]


def can_shrink(kernel_size: Size, padding: Padding, dilation: Size) -> bool:
    """Return whether a 1x1 kernel without padding keeps the output size and the centre's pixel.

    It does, for any stride, if the kernel is odd and each side is padded by half its reach:
    `k % 2 == 1` and `2 p = d (k - 1)` per axis. `padding` is (left, right, top, bottom).
    """
    return all(
        k % 2 == 1 and 2 * before == 2 * behind == d * (k - 1)
        for k, d, (before, behind) in zip(kernel_size, dilation, sides_of(padding), strict=True)
    )
