"""A scale and a shift per channel: BatchNorm in eval mode, layer scale."""

from dataclasses import dataclass

from torch import Tensor, float64

from updp.algebra.compose import compose
from updp.algebra.operator import Operator


@dataclass(frozen=True, eq=False)
class Affine:
    """`y[c] = scale[c] * x[c] + shift[c]`; scale and shift are (C,), float64."""

    scale: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        assert self.scale.dtype == self.shift.dtype == float64, "an Affine holds float64"
        assert self.scale.ndim == 1, self.scale.shape
        assert self.scale.shape == self.shift.shape, (self.scale.shape, self.shift.shape)


def from_batchnorm(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Affine:
    """Read a BatchNorm in eval mode, all tensors (C,), with its own eps.

    `scale = weight / sqrt(var + eps)`, `shift = bias - mean * scale` (RepVGG, arXiv 2101.03697,
    section 3.3).
    """
    scale = (var.detach().double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -mean.detach().double() * scale
    return Affine(scale, shift if bias is None else shift + bias.detach().double())


def after(operator: Operator, affine: Affine) -> Operator:
    """Fold the affine (O,) that follows the operator: `W' = scale W`, `b' = scale b + shift`."""
    return compose(operator, as_operator(affine, operator.dims))


def before(affine: Affine, operator: Operator) -> Operator:
    """Fold the affine (I,) that precedes the operator: `W' = W scale`, `b' = b + sum of W shift`.

    The operator's padding goes in front of the affine: x is padded with zeros and the affine is
    applied to the padded map, so that padded pixels hold `shift`. That is exact for a block
    trained so (docs/concepts/merging.md, *Padding*); a BatchNorm in front of an ordinary padded
    convolution leaves zeros there and differs at the border unless `shift` is zero.
    """
    return compose(as_operator(affine, operator.dims), operator)


def chain(first: Affine, second: Affine) -> Affine:
    """Return the second affine (C,) after the first (C,)."""
    if first.scale.shape != second.scale.shape:
        raise ValueError(f"first has {len(first.scale)} channels, second {len(second.scale)}")
    return Affine(first.scale * second.scale, first.shift * second.scale + second.shift)


def as_operator(affine: Affine, dims: int = 2) -> Operator:
    """Return the affine (C,) as a depthwise 1x1 operator on maps with `dims` axes."""
    weight = affine.scale.reshape(-1, 1, *[1] * dims)
    return Operator(weight, affine.shift, groups=len(affine.scale))
