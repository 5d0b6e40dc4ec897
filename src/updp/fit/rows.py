"""Rows of a regression: sampled output pixels, and the input patches that belong to them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from updp.algebra import Operator


@dataclass(frozen=True)
class Sample:
    """Randomly drawn output pixels of one batch: image, line and column of each, (M,)."""

    image: Tensor
    line: Tensor
    column: Tensor

    @classmethod
    def draw(cls, images: int, height: int, width: int, count: int, seed: int) -> Sample:
        """Draw at most `count` different pixels of maps (images, C, height, width), by image."""
        generator = torch.Generator().manual_seed(seed)
        pixels = images * height * width
        drawn = torch.randperm(pixels, generator=generator)[:count].sort().values
        image, rest = drawn // (height * width), drawn % (height * width)
        return cls(image, rest // width, rest % width)

    def of(self, maps: Tensor) -> Tensor:
        """Values (M, C) of `maps` (N, C, H, W) at the sampled pixels."""
        image, line, column = (i.to(maps.device) for i in (self.image, self.line, self.column))
        return maps.permute(0, 2, 3, 1)[image, line, column]

    def patches(self, maps: Tensor, operator: Operator) -> Tensor:
        """Patches of `maps` (N, I, H, W) that `operator` reads for the sampled output pixels.

        Shape (groups, M, I / groups * kh * kw + 1): the order of its weight, then 1 for the bias.
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
    """Weight and bias as a matrix behind `Sample.patches`: (groups, unknowns, O / groups)."""
    weight = _split(operator.weight.flatten(1), 0, operator.groups)
    bias = _split(operator.bias, 0, operator.groups)
    return torch.cat([weight.transpose(1, 2), bias[:, None]], 1)


def with_weights(operator: Operator, weights: Tensor) -> Operator:
    """The operator with the weight and bias of a matrix as `weights_of` returns it."""
    weight = weights[:, :-1].transpose(1, 2).reshape_as(operator.weight)
    bias = weights[:, -1].reshape_as(operator.bias)
    return replace(operator, weight=weight, bias=bias)


def _split(x: Tensor, axis: int, groups: int) -> Tensor:
    """Split an axis into (groups, rest)."""
    return x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])
