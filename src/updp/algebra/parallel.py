"""Parallel operators: identity skips, sums of two operators, and reordered output channels."""

from dataclasses import replace
from math import gcd

import torch
from torch import Tensor

from updp.algebra.compose import common_step, taps
from updp.algebra.operator import Operator, padding_of, sides_of


def identity(
    channels: int, groups: int = 1, device: torch.device | None = None, dims: int = 2
) -> Operator:
    """Return the skip as an operator: a Dirac 1x1 kernel (channels, channels / groups, 1, 1)."""
    if channels % groups:
        raise ValueError(f"channels={channels} is not a multiple of groups={groups}")
    eye = torch.eye(channels // groups, dtype=torch.float64, device=device)
    return Operator(
        eye.repeat(groups, 1)[(..., *(None,) * dims)],
        torch.zeros(channels, dtype=torch.float64, device=device),
        groups=groups,
    )


def reorder(operator: Operator, order: Tensor) -> Operator:
    """Return the operator with reordered output channels: channel c is the old `order[c]`.

    A shuffle of channels may mix groups; the result has as many groups as the order leaves intact.
    """
    groups = kept_groups(operator.groups, order)
    weight = _regrouped(operator, groups)[order]
    return replace(operator, weight=weight, bias=operator.bias[order], groups=groups)


def kept_groups(groups: int, order: Tensor) -> int:
    """Return the most groups, a divisor of `groups`, that keep their channels in this order."""
    count, places = len(order), torch.arange(len(order), device=order.device)

    def stay(groups: int) -> bool:
        return torch.equal(order * groups // count, places * groups // count)

    return next(g for g in range(groups, 0, -1) if groups % g == 0 and stay(g))


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
    sides, dilation, kernel = list[tuple[int, int]](), list[int](), list[int]()
    for axis, (side_a, side_b) in enumerate(
        zip(sides_of(a.padding), sides_of(b.padding), strict=True)
    ):
        before, behind = map(max, side_a, side_b)
        step = common_step(
            side_a[0] - side_b[0],
            *(op.dilation[axis] for op in (a, b) if op.kernel_size[axis] > 1),
        )
        sides.append((before, behind))
        dilation.append(step)
        # Both have the same slack, which is padding minus reach: so padding gives the sum's reach.
        kernel.append((before + behind - a.slack[axis]) // step + 1)
    groups = gcd(a.groups, b.groups)
    weight = a.weight.new_zeros(a.out_channels, a.in_channels // groups, *kernel)
    for op in a, b:
        places = [
            taps((sides[axis][0] - before) // step, op.kernel_size[axis], op.dilation[axis] // step)
            for axis, ((before, _), step) in enumerate(
                zip(sides_of(op.padding), dilation, strict=True)
            )
        ]
        weight[(slice(None), slice(None), *places)] += _regrouped(op, groups)
    padding = padding_of(sides)
    return Operator(weight, a.bias + b.bias, a.stride, padding, tuple(dilation), groups)


def _regrouped(operator: Operator, groups: int) -> Tensor:
    """Return the weight (O, I / groups, kh, kw) for fewer groups, a divisor of operator's."""
    ratio = operator.groups // groups
    if ratio == 1:
        return operator.weight
    columns = operator.weight.shape[1]
    weight = operator.weight.reshape(groups, ratio, -1, columns, *operator.kernel_size)
    # Block-diagonal: sub-group r of the outputs (o) reads only sub-group s = r of the inputs (i).
    eye = torch.eye(ratio, dtype=weight.dtype, device=weight.device)
    weight = torch.einsum("groi...,rs->grosi...", weight, eye)
    return weight.reshape(operator.out_channels, -1, *operator.kernel_size)
