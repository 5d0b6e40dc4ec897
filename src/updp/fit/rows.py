"""Feature maps as rows of a regression: which pixels are looked at, and what an operator sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from updp.algebra import Operator


@dataclass(frozen=True)
class Sample:
    """Output pixels of one batch, drawn at random: image, line and column of each, (M,)."""

    image: Tensor
    line: Tensor
    column: Tensor

    @classmethod
    def draw(cls, images: int, height: int, width: int, count: int, seed: int) -> Sample:
        """At most `count` different pixels of maps (images, C, height, width), by image."""
        generator = torch.Generator().manual_seed(seed)
        pixels = images * height * width
        drawn = torch.randperm(pixels, generator=generator)[:count].sort().values
        image, rest = drawn // (height * width), drawn % (height * width)
        return cls(image, rest // width, rest % width)

    def of(self, maps: Tensor) -> Tensor:
        """The values (M, C) at these pixels of `maps` (N, C, H, W)."""
        image, line, column = (i.to(maps.device) for i in (self.image, self.line, self.column))
        return maps.permute(0, 2, 3, 1)[image, line, column]

    def patches(self, maps: Tensor, operator: Operator) -> Tensor:
        """What `operator` reads of `maps` (N, I, H, W) for these pixels of its output.

        (groups, M, I / groups * kh * kw + 1): in the order of its weight, then a one for the bias.
        """
        padded = F.pad(maps, operator.padding).permute(0, 2, 3, 1)
        image, line, column = (i.to(maps.device) for i in (self.image, self.line, self.column))
        (sh, sw), (dh, dw), (kh, kw) = operator.stride, operator.dilation, operator.kernel_size
        taps = [
            padded[image, line * sh + i * dh, column * sw + j * dw]
            for i in range(kh)
            for j in range(kw)
        ]
        rows = _split(torch.stack(taps, 2), 1, operator.groups)  # (M, g, I / g, taps)
        rows = rows.flatten(2).transpose(0, 1)
        return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)


def weights_of(operator: Operator) -> Tensor:
    """Weight and bias as what multiplies `Sample.patches`: (groups, unknowns, O / groups)."""
    weight = _split(operator.weight.flatten(1), 0, operator.groups)
    bias = _split(operator.bias, 0, operator.groups)
    return torch.cat([weight.transpose(1, 2), bias[:, None]], 1)


def with_weights(operator: Operator, weights: Tensor) -> Operator:
    """The inverse of `weights_of`: an operator of the same shape with other weights."""
    weight = weights[:, :-1].transpose(1, 2).reshape_as(operator.weight)
    bias = weights[:, -1].reshape_as(operator.bias)
    return Operator(
        weight, bias, operator.stride, operator.padding, operator.dilation, operator.groups
    )


def _split(x: Tensor, axis: int, groups: int) -> Tensor:
    """An axis as (groups, rest)."""
    return x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])
