"""Rows of a regression: sampled output pixels, and the input patches that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from updp.algebra import Operator


@dataclass(frozen=True)
class Sample:
    """Randomly drawn output pixels of one batch: image and place (line, column) of each, (M,)."""

    image: Tensor
    places: tuple[Tensor, ...]

    @classmethod
    def draw(cls, images: int, sizes: Sequence[int], count: int, seed: int) -> Sample:
        """Draw at most `count` different pixels of maps (images, C, *sizes), by image."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(images * prod(sizes), generator=generator)[:count].sort().values
        places: list[Tensor] = []
        for size in reversed(sizes):
            places.insert(0, drawn % size)
            drawn = drawn // size
        return cls(drawn, tuple(places))

    def of(self, maps: Tensor) -> Tensor:
        """Values (M, C) of `maps` (N, C, H, W) at the sampled pixels."""
        return maps.movedim(1, -1)[tuple(i.to(maps.device) for i in (self.image, *self.places))]

    def patches(self, maps: Tensor, operator: Operator) -> Tensor:
        """Patches of `maps` (N, I, H, W) that `operator` reads for the sampled output pixels.

        Shape (groups, M, I / groups * kh * kw + 1): the order of its weight, then 1 for the bias.
        """
        padded = F.pad(maps, operator.padding).movedim(1, -1)
        image, *places = (i.to(maps.device) for i in (self.image, *self.places))
        starts = [p * s for p, s in zip(places, operator.stride, strict=True)]
        taps = []
        for tap in product(*map(range, operator.kernel_size)):
            moves = zip(starts, tap, operator.dilation, strict=True)
            taps.append(padded[(image, *(start + t * d for start, t, d in moves))])
        rows = _split(torch.stack(taps, 2), 1, operator.groups)  # (M, g, I / g, taps)
        rows = rows.flatten(2).transpose(0, 1)
        return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)


def weights_of(operator: Operator) -> Tensor:
    """Weight and bias as the matrix to multiply `Sample.patches` by: (g, unknowns, O / groups)."""
    weight = _split(operator.weight.flatten(1), 0, operator.groups)
    bias = _split(operator.bias, 0, operator.groups)
    return torch.cat([weight.transpose(1, 2), bias[:, None]], 1)


def free_of(operator: Operator, free: Tensor) -> Tensor:
    """Which weights may change, and every bias, as a matrix as `weights_of` returns it."""
    shown = replace(operator, weight=free.to(operator.weight), bias=torch.ones_like(operator.bias))
    return weights_of(shown) != 0


def with_weights(operator: Operator, weights: Tensor) -> Operator:
    """The operator with the weight and bias of a matrix as `weights_of` returns it."""
    weight = weights[:, :-1].transpose(1, 2).reshape_as(operator.weight)
    bias = weights[:, -1].reshape_as(operator.bias)
    return replace(operator, weight=weight, bias=bias)


def _split(x: Tensor, axis: int, groups: int) -> Tensor:
    """Split an axis into (groups, rest)."""
    return x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])
