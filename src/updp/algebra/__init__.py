"""Linear operators as data, and how they merge: exactly, in float64, with no model in sight.

An `Operator` is a convolution with its bias, stride, padding, dilation and groups; an `Affine` is
a BatchNorm or layer scale. `compose` puts one operator after another, `add` puts two side by side,
`after` and `before` fold an affine, and `centre_tap` and `spatial_sum` shrink a kernel. Each is a
pure function and equal to what it replaces, border included; where a merge is only equal for
padding in a certain place, its docstring says where. The rules are in DESIGN, "Merging exactly".
"""

from updp.algebra.affine import Affine, after, as_operator, before, chain, from_batchnorm
from updp.algebra.compose import compose, compose_all
from updp.algebra.operator import Operator, Padding, Pair, from_conv, from_linear
from updp.algebra.parallel import add, identity, scale
from updp.algebra.shrink import can_shrink, centre_tap, spatial_sum

__all__ = [
    "Affine",
    "Operator",
    "Padding",
    "Pair",
    "add",
    "after",
    "as_operator",
    "before",
    "can_shrink",
    "centre_tap",
    "chain",
    "compose",
    "compose_all",
    "from_batchnorm",
    "from_conv",
    "from_linear",
    "identity",
    "scale",
    "spatial_sum",
]
