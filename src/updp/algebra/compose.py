"""One operator after another as a single operator (docs/concepts/merging.md)."""

from itertools import product
from math import gcd, lcm, prod

import torch
from torch import Tensor

from updp.algebra.operator import Operator, Size, padding_of, sides_of


def compose(first: Operator, second: Operator) -> Operator:
    """Return `second` after `first`, (M, I/g1, k1) then (O, M/g2, k2), as one operator.

    Per axis, tap b of the second reads what tap a of the first read at input offset
    `a * d1 + b * d2 * s1`, so (merging as in DepthShrinker, arXiv 2206.00843, and in the subnet
    merging stage of UPDP, arXiv 2401.06426; with strides as in docs/concepts/merging.md)

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
    sides, dilation, steps1, steps2 = [], list[int](), list[int](), list[int]()
    padded = zip(sides_of(first.padding), sides_of(second.padding), strict=True)
    for axis, ((before1, behind1), (before2, behind2)) in enumerate(padded):
        s1 = first.stride[axis]
        sides.append((before1 + s1 * before2, behind1 + s1 * behind2))
        k1, k2 = first.kernel_size[axis], second.kernel_size[axis]
        d1, d2 = first.dilation[axis], second.dilation[axis] * s1
        # An axis with one tap has no distances to keep.
        step = common_step(d1 * (k1 > 1), d2 * (k2 > 1))
        dilation.append(step)
        steps1.append(d1 // step)
        steps2.append(d2 // step)
    return Operator(
        weight=_weight(first, second, tuple(steps1), tuple(steps2)),
        bias=_bias(first, second),
        stride=tuple(a * b for a, b in zip(first.stride, second.stride, strict=True)),
        padding=padding_of(sides),
        dilation=tuple(dilation),
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


def _weight(first: Operator, second: Operator, steps1: Size, steps2: Size) -> Tensor:
    """Return the kernel (O, I / gcd(g1, g2), kh, kw); taps lie steps1 and steps2 apart on its grid.

    The groups of both operators cut the M channels between them into lcm(g1, g2) blocks, each in
    one group of the first and one of the second. Only these blocks are multiplied: depthwise then
    pointwise costs M outer products, never an M x M kernel.
    """
    g1, g2 = first.groups, second.groups
    blocks = lcm(g1, g2)
    r1, r2 = blocks // g2, blocks // g1  # groups of each within one group of the result
    rows, columns = second.out_channels // g2, first.in_channels // g1
    middle = first.out_channels // blocks
    kernel1, kernel2 = first.kernel_size, second.kernel_size

    w1 = first.weight.reshape(blocks, middle, columns * prod(kernel1))
    w2 = second.weight.reshape(g2, rows, r1, middle, *kernel2).transpose(1, 2)
    w2 = w2.reshape(blocks, rows, middle, *kernel2)

    # Block l lies in group l // r1 of the second and l // r2 of the first.
    block = torch.arange(blocks, device=w1.device)
    place = block // r1 * r1 + block // r2 % r1
    axes = [*zip(kernel1, steps1, kernel2, steps2, strict=True)]
    kernel = [(k1 - 1) * step1 + (k2 - 1) * step2 + 1 for k1, step1, k2, step2 in axes]
    weight = w1.new_zeros(blocks, rows, columns, *kernel)
    whole = (slice(None),) * 3
    for tap in product(*map(range, kernel2)):
        part = (w2[whole + tap] @ w1).reshape(blocks, rows, columns, *kernel1)
        starts = [t * step2 for t, (_, _, _, step2) in zip(tap, axes, strict=True)]
        at = [taps(start, k1, step) for start, (k1, step, _, _) in zip(starts, axes, strict=True)]
        weight[(*whole, *at)].index_add_(0, place, part)
    weight = weight.reshape(g2, r1, rows, columns, *kernel).transpose(1, 2)
    return weight.reshape(second.out_channels, r1 * columns, *kernel)


def _bias(first: Operator, second: Operator) -> Tensor:
    """Return the bias (O,): second's own, plus its response to first's bias (M,)."""
    g = second.groups
    taps_of = tuple(range(2, second.weight.ndim))
    total = second.weight.sum(taps_of).reshape(g, -1, second.in_channels // g)
    return second.bias + (total @ first.bias.reshape(g, -1, 1)).flatten()
