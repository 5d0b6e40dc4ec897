"""Linear operators as data, and their exact merging in float64; nothing here knows a model.

An `Operator` is a convolution in 1, 2 or 3 dimensions with its bias, stride, padding, dilation and
groups; an `Affine` is a BatchNorm or layer scale. `compose` puts one operator after another, `add`
sums two in parallel, `after` and `before` fold an affine, `reorder` permutes output channels, and
`centre_tap` shrinks a kernel. Each is a pure function and equal to what it replaces, border
included; where a merge is only equal for padding in a certain place, its docstring says where. The
rules are in docs/concepts/merging.md.
"""

from updp.algebra.affine import Affine, after, as_operator, before, chain, from_batchnorm
from updp.algebra.compose import compose
from updp.algebra.operator import (
    Operator,
    Padding,
    Size,
    convolve,
    from_linear,
    padding_of,
    sides_of,
)
from updp.algebra.parallel import add, identity, kept_groups, reorder
from updp.algebra.shrink import can_shrink, centre_tap

__all__ = [
    "Affine",
    "Operator",
    "Padding",
    "Size",
    "add",
    "after",
    "as_operator",
    "before",
    "can_shrink",
    "centre_tap",
    "chain",
    "compose",
    "convolve",
    "from_batchnorm",
    "from_linear",
    "identity",
    "kept_groups",
    "padding_of",
    "reorder",
    "sides_of",
]
