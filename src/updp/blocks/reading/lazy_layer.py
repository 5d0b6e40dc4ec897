"""A linear layer as data, whose kernel and bias are computed when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor, nn

from updp.algebra import Padding, Size, sides_of
from updp.blocks.reading.watching import CONVOLUTIONS, padding_in, per_axis, uses_weight_as_is


@dataclass(frozen=True)
class LazyLayer:
    """A linear layer of the module's input; kernel and bias are computed when they are asked for.

    shape:        of the kernel: (O, I) of a linear layer, (O, I, kh, kw) of a convolution
    depths:       numbers of layers on the paths from the input
    is_computed:  whether a function runs it, with a weight that may be computed
    adapts:       whether its paths of several layers are adapters: with fewer weights than a layer
                  of this shape, and without a bias between them
    """

    kernel: Callable[[], Tensor]
    bias: Callable[[], Tensor | None]
    shape: tuple[int, ...]
    stride: Size
    padding: Padding
    dilation: Size
    depths: frozenset[int] = frozenset({1})
    is_computed: bool = False
    adapts: bool = True

    @property
    def is_pointwise(self) -> bool:
        """Whether it works on each pixel or token alone."""
        return {*self.shape[2:], *self.stride} <= {1} and not any(self.padding)

    def mapped(self, by: Callable[[Tensor], Tensor]) -> LazyLayer:
        """The layer with a linear function of kernel and bias, both (O, ...), in their place."""
        kernel, bias = self.kernel, self.bias

        def mapped_bias() -> Tensor | None:
            return None if (own := bias()) is None else by(own)

        return replace(self, kernel=lambda: by(kernel()), bias=mapped_bias)

    def plus(self, other: LazyLayer) -> LazyLayer | None:
        """The sum of two layers; None where their outputs are of other pixels."""
        sizes = [(e.shape, e.stride, e.padding, e.dilation) for e in (self, other)]
        if sizes[0] != sizes[1]:
            return None
        return replace(
            self,
            kernel=lambda: self.kernel() + other.kernel(),
            bias=lambda: _sum(self.bias(), other.bias()),
            depths=self.depths | other.depths,
            is_computed=self.is_computed or other.is_computed,
            adapts=self.adapts and other.adapts,
        )

    def before(self, last: LazyLayer) -> LazyLayer | None:
        """This layer and then `last`; None unless that works on each pixel alone."""
        if not last.is_pointwise or len(last.shape) != len(self.shape):
            return None

        def kernel() -> Tensor:
            product = last.kernel().flatten(1) @ self.kernel().flatten(1)
            return product.reshape(len(product), *self.shape[1:])

        def bias() -> Tensor | None:
            own = self.bias()
            return _sum(None if own is None else last.kernel().flatten(1) @ own, last.bias())

        shape = (last.shape[0], *self.shape[1:])
        is_small = prod(self.shape) + prod(last.shape) < prod(shape)
        return replace(
            self,
            kernel=kernel,
            bias=bias,
            shape=shape,
            depths=frozenset(depth + 1 for depth in self.depths),
            is_computed=self.is_computed or last.is_computed,
            adapts=self.adapts and is_small and self.bias() is None,
        )


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def of_linear(
    kernel: Callable[[], Tensor],
    bias: Callable[[], Tensor | None],
    shape: Sequence[int],
    *,
    is_computed: bool = False,
) -> LazyLayer:
    """A linear layer with these weights."""
    sizes = (1, 1), (0,) * 4, (1, 1)  # as those of a 1x1 convolution
    return LazyLayer(kernel, bias, tuple(shape), *sizes, is_computed=is_computed)


def of_module(child: nn.Module) -> LazyLayer | None:
    """A linear layer or a convolution of all channels, as it stands."""
    if not isinstance(child, (*CONVOLUTIONS, nn.Linear)) or not uses_weight_as_is(child):
        return None
    shape = tuple(child.weight.shape)
    if isinstance(child, nn.Linear):
        return of_linear(lambda: child.weight, lambda: child.bias, shape)
    padding = padding_in(child.padding, child)
    uneven = any(before != behind for before, behind in sides_of(padding))
    if child.padding_mode != "zeros" or child.groups > 1 or uneven:
        return None
    stride, dilation = (per_axis(size, len(shape) - 2) for size in (child.stride, child.dilation))
    return LazyLayer(lambda: child.weight, lambda: child.bias, shape, stride, padding, dilation)


def layer_after(x: LazyLayer | float, layer: LazyLayer | None) -> LazyLayer | None:
    """A layer of `x`."""
    if layer is None:
        return None
    if isinstance(x, LazyLayer):
        return x.before(layer)
    kernel = layer.kernel
    return layer if x == 1 else replace(layer, kernel=lambda: kernel() * x)


def scaled(x: LazyLayer | float, by: Any, *, divided: bool) -> LazyLayer | float | None:
    """A value times, or divided by, a number or a tensor with one entry for each channel."""
    if not isinstance(x, LazyLayer):
        return (x / by if divided else x * by) if isinstance(by, int | float) else None
    factor = by if isinstance(by, int | float) else _per_channel(by, x)
    if factor is None:
        return None

    def scale(weights: Tensor) -> Tensor:
        shaped = factor
        if isinstance(factor, Tensor):
            shaped = factor.reshape(-1, *[1] * (weights.ndim - 1))
        return weights / shaped if divided else weights * shaped

    return x.mapped(scale)


def shifted(x: LazyLayer | float, by: Any) -> LazyLayer | None:
    """A layer plus a tensor with one entry for each channel."""
    if not isinstance(x, LazyLayer) or (shift := _per_channel(by, x)) is None:
        return None
    bias, count = x.bias, x.shape[0]
    return replace(x, bias=lambda: _sum(bias(), shift.expand(count)))


def _per_channel(value: Any, layer: LazyLayer) -> Tensor | None:
    """Entries (O,) or (1,) of a tensor that broadcasts onto a layer's outputs by channel."""
    if not isinstance(value, Tensor):
        return None
    axis = 1 - len(layer.shape) if len(layer.shape) > 2 else -1
    by_channel = value.ndim >= -axis and value.shape[axis] == value.numel() == layer.shape[0]
    return value.flatten() if by_channel or value.numel() == 1 else None
