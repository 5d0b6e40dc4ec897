"""Random operators, and the independent reference they are held against: plain torch calls."""

from dataclasses import dataclass
from math import lcm

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from updp.algebra import Affine, Operator, Padding, Pair, from_batchnorm

TOLERANCE = 1e-12

quick = settings(deadline=None, derandomize=True, max_examples=300)

# torch says so once per process, whichever test comes first.
same_padding = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

seeds = st.integers(0, 2**31 - 1)
group_counts = st.sampled_from([1, 2, 3, 4, 6])
small = st.integers(1, 3)


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


paddings: st.SearchStrategy[Padding] = st.one_of(
    pairs(0, 3).map(lambda p: (p[1], p[1], p[0], p[0])),
    st.tuples(*[st.integers(-1, 3)] * 4),
)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def operators(
    draw: st.DrawFn,
    in_channels: int,
    out_channels: int,
    groups: int,
    stride: Pair | None = None,
    padding: Padding | None = None,
) -> Operator:
    kernel, seed = draw(pairs(1, 5)), draw(seeds)
    bias = randn(seed + 1, out_channels) * draw(st.booleans())
    return Operator(
        randn(seed, out_channels, in_channels // groups, *kernel),
        bias,
        draw(pairs(1, 3)) if stride is None else stride,
        draw(paddings) if padding is None else padding,
        draw(pairs(1, 3)),
        groups,
    )


@st.composite
def any_operator(draw: st.DrawFn) -> Operator:
    """Dense, grouped or depthwise (with a channel multiplier)."""
    groups = draw(group_counts)
    return draw(operators(groups * draw(small), groups * draw(small), groups))


@st.composite
def two_in_a_row(draw: st.DrawFn) -> tuple[Operator, Operator]:
    g1, g2 = draw(group_counts), draw(group_counts)
    middle = lcm(g1, g2) * draw(st.integers(1, 2))
    return (
        draw(operators(g1 * draw(small), middle, g1)),
        draw(operators(middle, g2 * draw(small), g2)),
    )


@st.composite
def two_side_by_side(draw: st.DrawFn) -> tuple[Operator, Operator]:
    """Both give the same output size for every input; kernel, dilation, shift, groups differ."""
    g1, g2 = draw(group_counts), draw(group_counts)
    i, o, stride = lcm(g1, g2) * draw(small), lcm(g1, g2) * draw(small), draw(pairs(1, 3))
    a = draw(operators(i, o, g1, stride))
    b = draw(operators(i, o, g2, stride))
    left, _, top, _ = b.padding
    (kh, kw), (dh, dw) = b.kernel_size, b.dilation
    right = a.slack[1] + dw * (kw - 1) - left
    bottom = a.slack[0] + dh * (kh - 1) - top
    return a, Operator(b.weight, b.bias, stride, (left, right, top, bottom), (dh, dw), g2)


@dataclass(frozen=True)
class Statistics:
    """The arguments of batch_norm in eval mode."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def affine(self) -> Affine:
        return from_batchnorm(self.mean, self.var, self.weight, self.bias, self.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, eps=self.eps)


@st.composite
def statistics(draw: st.DrawFn, channels: int) -> Statistics:
    mean, spread, weight, bias = randn(draw(seeds), 4, channels)
    return Statistics(
        mean,
        # Variances down to 1e-6, where a wrong eps shows.
        (3 * spread - 3).exp().clamp(1e-6, 1e3),
        weight if draw(st.booleans()) else None,
        bias if draw(st.booleans()) else None,
        10 ** draw(st.floats(-5, -1)),
    )


@st.composite
def images(draw: st.DrawFn, *ops: Operator) -> Tensor:
    """A batch just large enough for each of the operators, or a few pixels larger."""

    def at_least(axis: int, before: int) -> int:
        need = 1 - min(op.slack[axis] for op in ops)
        crop = max(-op.padding[side] for op in ops for side in (before, before + 1))
        # torch refuses to crop more pixels than there are, even where it pads others.
        return max(need, 2 * crop + 1, 1)

    height = at_least(0, 2) + draw(st.integers(0, 6))
    width = at_least(1, 0) + draw(st.integers(0, 6))
    return randn(draw(seeds), 2, ops[0].in_channels, height, width)


def from_conv(conv: nn.Conv2d) -> Operator:
    """A convolution layer as an operator; 'same' padding puts the odd pixel behind."""
    sides = []
    for axis in (1, 0):
        total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        before = total // 2 if conv.padding == "same" else conv.padding[axis]
        sides += [before, total - before if conv.padding == "same" else before]
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
    return Operator(
        conv.weight.detach().double(),
        bias.detach().double(),
        conv.stride,
        tuple(sides),
        conv.dilation,
        conv.groups,
    )


def direct(op: Operator, x: Tensor, padding: Padding | None = None) -> Tensor:
    """What torch makes of the operator's data; nothing of Operator but its fields is used."""
    x = F.pad(x, op.padding if padding is None else padding)
    return F.conv2d(x, op.weight, op.bias, op.stride, 0, op.dilation, op.groups)


def ring(y: Tensor, width: int = 1) -> Tensor:
    """The border pixels of y (N, C, H, W), as (N, C, pixels)."""
    mask = torch.ones(y.shape[-2:], dtype=torch.bool)
    mask[width:-width, width:-width] = False
    return y[..., mask]


def interior(y: Tensor, width: int = 1) -> Tensor:
    return y[..., width:-width, width:-width]


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-300)).item()


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal to TOLERANCE, over all pixels and over the border alone."""
    assert error(actual, expected) <= TOLERANCE
    assert error(ring(actual), ring(expected)) <= TOLERANCE
