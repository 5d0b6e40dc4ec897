"""Parallel operators: an identity skip, and the sum of two operators (DESIGN, merging rule 4)."""

from math import gcd

import torch
from torch import Tensor

from updp.algebra.compose import common_step, taps
from updp.algebra.operator import Operator


def identity(channels: int, groups: int = 1, device: torch.device | None = None) -> Operator:
    """Return the skip as an operator: a Dirac 1x1 kernel (channels, channels / groups, 1, 1)."""
    if channels % groups:
        raise ValueError(f"channels={channels} is not a multiple of groups={groups}")
    eye = torch.eye(channels // groups, dtype=torch.float64, device=device)
    return Operator(
        eye.repeat(groups, 1)[:, :, None, None],
        torch.zeros(channels, dtype=torch.float64, device=device),
        groups=groups,
    )


def add(a: Operator, b: Operator) -> Operator:
    """Return `x -> a(x) + b(x)` as one operator, exact up to and including the border.

    Tap t reads the input at offset `t * dilation - padding before`; both kernels are laid on the
    coarsest grid that holds all offsets and added (RepVGG, arXiv 2101.03697, section 3.3, for any
    padding, dilation and groups). As zeros lie outside the input for both, the larger padding
    per side serves both.

    Strides must match, and output sizes for *every* input size. A caller who knows that, say, a
    2x2 stride-2 shortcut only meets even sizes may first pad it by a pixel it never reads.
    """
    if (a.in_channels, a.out_channels) != (b.in_channels, b.out_channels):
        raise ValueError(f"channels differ: {a} and {b}")
    if a.stride != b.stride:
        raise ValueError(f"strides differ: {a} and {b}")
    if a.slack != b.slack:
        raise ValueError(f"output sizes differ: {a} and {b}")
    left, right, top, bottom = map(max, a.padding, b.padding)
    # Height, then width: the axis of the kernel, and the side on which its first tap lies.
    dh, dw = (
        common_step(
            a.padding[side] - b.padding[side],
            *(op.dilation[axis] for op in (a, b) if op.kernel_size[axis] > 1),
        )
        for axis, side in ((0, 2), (1, 0))
    )
    # Slack is padding less reach, and shared: so the padding gives the reach of the sum.
    kh, kw = (top + bottom - a.slack[0]) // dh + 1, (left + right - a.slack[1]) // dw + 1
    groups = gcd(a.groups, b.groups)
    weight = a.weight.new_zeros(a.out_channels, a.in_channels // groups, kh, kw)
    for op in a, b:
        vertical = taps((top - op.padding[2]) // dh, op.kernel_size[0], op.dilation[0] // dh)
        horizontal = taps((left - op.padding[0]) // dw, op.kernel_size[1], op.dilation[1] // dw)
        weight[:, :, vertical, horizontal] += _regrouped(op, groups)
    return Operator(weight, a.bias + b.bias, a.stride, (left, right, top, bottom), (dh, dw), groups)


def _regrouped(operator: Operator, groups: int) -> Tensor:
    """Return the weight (O, I / groups, kh, kw) for fewer groups, a divisor of operator's."""
    ratio = operator.groups // groups
    if ratio == 1:
        return operator.weight
    _, columns, kh, kw = operator.weight.shape
    weight = operator.weight.reshape(groups, ratio, -1, columns, kh, kw)
    # Block-diagonal: sub-group r of the outputs (o) reads only sub-group s = r of the inputs (i).
    eye = torch.eye(ratio, dtype=weight.dtype, device=weight.device)
    weight = torch.einsum("groiyx,rs->grosiyx", weight, eye)
    return weight.reshape(operator.out_channels, -1, kh, kw)
