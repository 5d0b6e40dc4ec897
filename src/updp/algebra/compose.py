"""One operator after another as a single operator (DESIGN, merging rules 1 to 3)."""

from itertools import product
from math import gcd, lcm

import torch
from torch import Tensor

from updp.algebra.operator import Operator, Pair


def compose(first: Operator, second: Operator) -> Operator:
    """Return `second` after `first`, (M, I/g1, k1) then (O, M/g2, k2), as one operator.

    Per axis, tap b of the second reads what tap a of the first read at input offset
    `a * d1 + b * d2 * s1`, so (merging as in DepthShrinker, arXiv 2206.00843, and in the subnet
    merging stage of UPDP, arXiv 2401.06426; strides, dilation and groups after DESIGN, rule 2)

        W[o, i, a * d1 + b * d2 * s1] = sum over m of W2[o, m, b] * W1[m, i, a]
        bias[o] = b2[o] + sum over m, b of W2[o, m, b] * b1[m]

    with stride `s1 * s2` and groups `gcd(g1, g2)`. The gcd of the offsets stays as dilation.

    Padding becomes `p1 + s1 * p2` per side: all of it on the first operator, none on the second.
    That is NOT first, then zeros around its output, then second: around the border the first
    operator gives its bias and whatever its kernel still reaches, not zero. A block that shall
    merge exactly is therefore trained with all its padding on its first operator.
    """
    if first.out_channels != second.in_channels:
        raise ValueError(
            f"first writes {first.out_channels} channels, second reads {second.in_channels}: "
            f"weights {tuple(first.weight.shape)} with groups={first.groups} and "
            f"{tuple(second.weight.shape)} with groups={second.groups}"
        )
    (k1h, k1w), (k2h, k2w) = first.kernel_size, second.kernel_size
    (d1h, d1w), (d2h, d2w) = first.dilation, second.dilation
    (s1h, s1w), (s2h, s2w) = first.stride, second.stride
    left, right, top, bottom = (
        p1 + s1 * p2
        for p1, p2, s1 in zip(first.padding, second.padding, (s1w, s1w, s1h, s1h), strict=True)
    )
    axes = (k1h, d1h, k2h, d2h * s1h), (k1w, d1w, k2w, d2w * s1w)
    # An axis with one tap has no distances to keep.
    dh, dw = (common_step(d1 * (k1 > 1), d2 * (k2 > 1)) for k1, d1, k2, d2 in axes)
    return Operator(
        weight=_weight(first, second, (d1h // dh, d1w // dw), (d2h * s1h // dh, d2w * s1w // dw)),
        bias=_bias(first, second),
        stride=(s1h * s2h, s1w * s2w),
        padding=(left, right, top, bottom),
        dilation=(dh, dw),
        groups=gcd(first.groups, second.groups),
    )


def common_step(*distances: int) -> int:
    """Return the widest grid step that reaches every distance; 1 when there is none to reach.

    A kernel whose taps lie on multiples of this step keeps it as its dilation, so that zeros
    between the taps are neither stored nor multiplied.
    """
    return gcd(*distances) or 1


def taps(start: int, count: int, step: int) -> slice:
    """Return the slice that selects `count` grid points from `start`, `step` apart.

    One tap alone has no step: the dilation of a 1-tap kernel need not fit the grid, and may
    round to 0 here.
    """
    return slice(start, start + (count - 1) * step + 1, step or 1)


def _weight(first: Operator, second: Operator, step1: Pair, step2: Pair) -> Tensor:
    """Return the kernel (O, I / gcd(g1, g2), kh, kw); taps lie step1 and step2 apart on its grid.

    The groups of both operators cut the M channels between them into lcm(g1, g2) blocks, each in
    one group of the first and one of the second. Only these blocks are multiplied: depthwise then
    pointwise costs M outer products, never an M x M kernel.
    """
    g1, g2 = first.groups, second.groups
    blocks = lcm(g1, g2)
    r1, r2 = blocks // g2, blocks // g1  # groups of each within one group of the result
    rows, columns = second.out_channels // g2, first.in_channels // g1
    middle = first.out_channels // blocks
    (k1h, k1w), (k2h, k2w) = first.kernel_size, second.kernel_size

    w1 = first.weight.reshape(blocks, middle, columns * k1h * k1w)
    w2 = second.weight.reshape(g2, rows, r1, middle, k2h, k2w).transpose(1, 2)
    w2 = w2.reshape(blocks, rows, middle, k2h, k2w)

    # Block l lies in group l // r1 of the second and l // r2 of the first.
    block = torch.arange(blocks, device=w1.device)
    place = block // r1 * r1 + block // r2 % r1
    kh = (k1h - 1) * step1[0] + (k2h - 1) * step2[0] + 1
    kw = (k1w - 1) * step1[1] + (k2w - 1) * step2[1] + 1
    weight = w1.new_zeros(blocks, rows, columns, kh, kw)
    for b, c in product(range(k2h), range(k2w)):
        part = (w2[..., b, c] @ w1).reshape(blocks, rows, columns, k1h, k1w)
        vertical = taps(b * step2[0], k1h, step1[0])
        horizontal = taps(c * step2[1], k1w, step1[1])
        weight[..., vertical, horizontal].index_add_(0, place, part)
    weight = weight.reshape(g2, r1, rows, columns, kh, kw).transpose(1, 2)
    return weight.reshape(second.out_channels, r1 * columns, kh, kw)


def _bias(first: Operator, second: Operator) -> Tensor:
    """Return the bias (O,): second's own, plus its response to first's bias (M,)."""
    g = second.groups
    total = second.weight.sum((2, 3)).reshape(g, -1, second.in_channels // g)
    return second.bias + (total @ first.bias.reshape(g, -1, 1)).flatten()
