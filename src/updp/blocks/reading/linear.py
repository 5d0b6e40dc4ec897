"""Read convolutions and linear layers, subclasses included, as linear steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from updp.algebra import Padding, Size, convolve, padding_of, sides_of
from updp.blocks.copying import copy_module
from updp.blocks.reading.masks import mask_of
from updp.blocks.reading.watching import CONVOLUTIONS as CONVOLUTIONS
from updp.blocks.reading.watching import padding_in, per_axis, uses_weight_as_is, watch, weight_of
from updp.blocks.teach import taught_operator


@dataclass(frozen=True)
class LinearStep:
    """A convolution, or a linear layer on channels as a 1x1 convolution.

    name:      path of the module in its block
    padding:   zero padding (left, right, top, bottom), as in `torch.nn.functional.pad`
    before:    the part of it that the block adds to the module's own
    behind:    what the block crops from the module's output, as negative padding
    derived:   the weight is computed at each access: by the forward (weight standardisation, a
               mask), by a parametrization, by a hook (`torch.nn.utils.weight_norm`), or as
               registered with `updp.teach_operator`
    """

    name: str
    module: nn.Module
    stride: Size = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Size = (1, 1)
    groups: int = 1
    derived: bool = False
    before: Padding = ()
    behind: Padding = ()

    @classmethod
    def read(cls, name: str, module: nn.Module, x: Tensor) -> LinearStep:
        """Read a convolution, a linear layer or a registered module as a step.

        A subclass with a forward of its own is run on `x`, (N, C, ...) or (..., C), and watched.

        Raises:
            ValueError: the module computes something else; the text says what.
        """
        if (t := taught_operator(module)) is not None:
            return cls(name, module, t.stride, t.padding, t.dilation, t.groups, derived=True)
        assert isinstance(module, (*CONVOLUTIONS, nn.Linear))
        if isinstance(module, nn.Linear):
            weight = module.weight if uses_weight_as_is(module) else watch(module, x).weight
            return cls(name, module, derived=_is_derived(module, weight))
        if module.padding_mode != "zeros":
            raise ValueError(f"pads with {module.padding_mode!r}, not with zeros")
        sizes, dims = (module.stride, module.dilation), module.weight.ndim - 2  # maybe as lists
        stride, dilation = (per_axis(size, dims) for size in sizes)
        groups = module.groups
        if uses_weight_as_is(module):
            padding, weight = padding_in(module.padding, module), module.weight
        else:  # as timm's `StdConv2d` and `Conv2dSame`: see what it really does
            seen = watch(module, x)
            if (seen.stride, seen.dilation, seen.groups) != (stride, dilation, groups):
                raise ValueError("does not convolve as its attributes say")
            padding, weight = seen.padding, seen.weight
        return cls(name, module, stride, padding, dilation, groups, _is_derived(module, weight))

    def padded(self, sides: Sequence[tuple[int, int]]) -> LinearStep:
        """The step with zeros that the block adds before it, (before, behind) for each axis."""
        if not any(map(any, sides)):
            return self
        own = sides_of(self.on(len(sides)).padding)
        both = [(a + c, b + d) for (a, b), (c, d) in zip(sides, own, strict=True)]
        before = padding_of(sides)
        return replace(self.on(len(sides)), padding=padding_of(both), before=before)

    def cropped(self, sides: Sequence[tuple[int, int]]) -> LinearStep:
        """The step (of stride 1) without pixels (before, behind) at the edges of its output."""
        behind = padding_of((-a, -b) for a, b in sides)
        padding = tuple(a + b for a, b in zip(self.padding, behind, strict=True))
        return replace(self, padding=padding, behind=behind)

    def on(self, dims: int) -> LinearStep:
        """The step on `dims` axes; a linear layer works on any number, a convolution on its own."""
        if len(self.stride) == dims:
            return self
        return replace(self, stride=(1,) * dims, dilation=(1,) * dims, padding=(0, 0) * dims)

    @property
    def weight(self) -> Tensor:
        """Kernel as (O, I / groups, kh, kw); gradients reach the module's own weight."""
        return self._as_kernel(weight_of(self.module))

    @property
    def bias(self) -> Tensor | None:
        """Bias (O,), or None."""
        taught = taught_operator(self.module)
        return cast(Tensor | None, self.module.bias if taught is None else taught.bias)

    @property
    def exact_weight(self) -> Tensor:
        """Kernel (O, I / groups, kh, kw), computed in float64 and without gradient."""
        if not self.derived:
            return self.weight.detach().double()
        with torch.no_grad():
            return self._as_kernel(weight_of(copy_module(self.module).double()))

    @property
    def mask(self) -> Tensor | None:
        """Which elements of the kernel the module does not hide; None where it hides none."""
        mask = mask_of(self.module) if self.derived else None
        return None if mask is None else self._as_kernel(mask)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel, (O, I / groups, kh, kw)."""
        return tuple(self.weight.shape)

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return self.shape[0]

    @property
    def in_channels(self) -> int:
        """Number of input channels."""
        return self.shape[1] * self.groups

    @property
    def kernel(self) -> Size:
        """Kernel size (kh, kw)."""
        return self.shape[2:]

    @property
    def spatial(self) -> bool:
        """Whether the step is more than a dense linear layer on each pixel."""
        return self.groups > 1 or {*self.kernel, *self.stride} != {1} or any(self.padding)

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved by itself."""
        return self.groups == self.in_channels > 1

    def keep(self, x: Tensor, layout: str) -> Tensor:
        """Apply the step as the baseline does, to a tensor in `layout`."""
        if layout == "last":
            return F.linear(x, self.weight.flatten(1), self.bias)
        if isinstance(self.module, CONVOLUTIONS) and taught_operator(self.module) is None:
            y: Tensor = self.module(F.pad(x, self.before) if self.before else x)
            return F.pad(y, self.behind) if self.behind else y
        x, dilation = F.pad(x, self.padding), self.dilation
        return convolve(x, self.weight, self.bias, self.stride, 0, dilation, self.groups)

    def _as_kernel(self, weight: Tensor) -> Tensor:
        dims = len(self.stride)
        # On tokens a convolution of one pixel, such as a Conv1d, is a linear layer.
        return weight if weight.ndim == dims + 2 else weight.flatten(1)[(..., *(None,) * dims)]


def _is_derived(module: nn.Module, weight: Tensor) -> bool:
    """Whether the weight that the module convolves with is computed from its parameters."""
    return (
        is_parametrized(module)
        or weight is not module._parameters.get("weight")
        or mask_of(module) is not None  # it may be put onto the parameter itself
    )
