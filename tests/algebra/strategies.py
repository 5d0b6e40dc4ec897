"""Random operators, and the independent reference they are held against: plain torch calls."""

from dataclasses import dataclass
from math import lcm

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from updp.algebra import Affine, Operator, Padding, Size, from_batchnorm

TOLERANCE = 1e-12

quick = settings(deadline=None, derandomize=True, max_examples=300)

# torch says so once per process, whichever test comes first.
same_padding = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

seeds = st.integers(0, 2**31 - 1)
group_counts = st.sampled_from([1, 2, 3, 4, 6])
small = st.integers(1, 3)
dimensions = st.sampled_from([1, 2, 2, 3])
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def sizes(low: int, high: int, dims: int = 2) -> st.SearchStrategy[Size]:
    return st.tuples(*[st.integers(low, high)] * dims)


def paddings(dims: int) -> st.SearchStrategy[Padding]:
    return st.one_of(
        sizes(0, 3, dims).map(lambda p: tuple(side for side in reversed(p) for _ in range(2))),
        sizes(-1, 3, 2 * dims),
    )


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def operators(
    draw: st.DrawFn,
    in_channels: int,
    out_channels: int,
    groups: int,
    dims: int,
    stride: Size | None = None,
    padding: Padding | None = None,
) -> Operator:
    kernel, seed = draw(sizes(1, 5 if dims < 3 else 3, dims)), draw(seeds)
    bias = randn(seed + 1, out_channels) * draw(st.booleans())
    return Operator(
        randn(seed, out_channels, in_channels // groups, *kernel),
        bias,
        draw(sizes(1, 3, dims)) if stride is None else stride,
        draw(paddings(dims)) if padding is None else padding,
        draw(sizes(1, 3, dims)),
        groups,
    )


@st.composite
def any_operator(draw: st.DrawFn) -> Operator:
    """Dense, grouped or depthwise (with a channel multiplier), in 1, 2 or 3 dimensions."""
    groups, dims = draw(group_counts), draw(dimensions)
    return draw(operators(groups * draw(small), groups * draw(small), groups, dims))


@st.composite
def two_in_a_row(draw: st.DrawFn) -> tuple[Operator, Operator]:
    g1, g2, dims = draw(group_counts), draw(group_counts), draw(dimensions)
    middle = lcm(g1, g2) * draw(st.integers(1, 2))
    return (
        draw(operators(g1 * draw(small), middle, g1, dims)),
        draw(operators(middle, g2 * draw(small), g2, dims)),
    )


@st.composite
def two_side_by_side(draw: st.DrawFn) -> tuple[Operator, Operator]:
    """Both give the same output size for every input; kernel, dilation, shift, groups differ."""
    g1, g2, dims = draw(group_counts), draw(group_counts), draw(dimensions)
    i, o, stride = lcm(g1, g2) * draw(small), lcm(g1, g2) * draw(small), draw(sizes(1, 3, dims))
    a = draw(operators(i, o, g1, dims, stride))
    b = draw(operators(i, o, g2, dims, stride))
    padding: list[int] = []
    for axis in reversed(range(dims)):
        before, reach = (
            b.padding[2 * (dims - 1 - axis)],
            b.dilation[axis] * (b.weight.shape[2 + axis] - 1),
        )
        padding += [before, a.slack[axis] + reach - before]
    return a, Operator(b.weight, b.bias, stride, tuple(padding), b.dilation, g2)


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
    dims = ops[0].weight.ndim - 2

    def at_least(axis: int) -> int:
        before = 2 * (dims - 1 - axis)
        need = 1 - min(op.slack[axis] for op in ops)
        crop = max(-op.padding[side] for op in ops for side in (before, before + 1))
        # torch refuses to crop more pixels than there are, even where it pads others.
        return max(need, 2 * crop + 1, 1)

    room = 6 if dims < 3 else 2
    size = [at_least(axis) + draw(st.integers(0, room)) for axis in range(dims)]
    return randn(draw(seeds), 2, ops[0].in_channels, *size)


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
    function = CONVOLUTIONS[op.weight.ndim - 2]
    return function(x, op.weight, op.bias, op.stride, 0, op.dilation, op.groups)


def ring(y: Tensor, width: int = 1) -> Tensor:
    """The border pixels of y (N, C, H, W), as (N, C, pixels); of any number of axes."""
    mask = torch.ones(y.shape[2:], dtype=torch.bool)
    mask[(slice(width, -width),) * mask.ndim] = False
    return y[:, :, mask]


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
