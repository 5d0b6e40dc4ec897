"""Sums over the rows of a regression: all that a fit without an end activation needs of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from updp.io import processes


def relative_error(wrong: float, total: float, squares: float, count: float) -> float:
    """Mean squared error over the targets' variance.

    From sums over `count` targets: of squared errors, of the targets and of their squares.
    """
    variance = squares / count - (total / count) ** 2
    return wrong / count / max(variance, 1e-12)


@dataclass
class Moments:
    """Sums of products over rows, in float64; rows themselves are not kept.

    Of residuals, not of targets: what a prior leaves is small where it is near, and so exact.

    gram:      X'X, (g, D, D)
    cross:     X'R of the prior's residuals R, (g, D, O / g)
    sums:      of R^2, of the targets, of their squares, and the number of them, (4,)
    """

    gram: Tensor
    cross: Tensor
    sums: Tensor
    is_total: bool = False  # of all processes

    @classmethod
    def of(cls, groups: int, unknowns: int, outputs: int, device: torch.device) -> Moments:
        """Moments of zero rows, to add others to."""
        gram = torch.zeros(groups, unknowns, unknowns, dtype=torch.float64, device=device)
        return cls(gram, gram.new_zeros(groups, unknowns, outputs // groups), gram.new_zeros(4))

    def add(self, x: Tensor, residual: Tensor, target: Tensor) -> None:
        """Add rows: inputs (g, m, D), the prior's residuals and the targets, (g, m, O / g)."""
        self.gram.baddbmm_(x.mT, x)
        self.cross.baddbmm_(x.mT, residual)
        values = residual.square().sum(), target.sum(), target.square().sum()
        self.sums += torch.stack([*values, values[0].new_tensor(float(target.numel()))])

    def add_up(self) -> None:
        """Take in the rows of all processes, once."""
        if not self.is_total:
            processes.all_reduce(self.gram, self.cross, self.sums)
            self.is_total = True

    @property
    def count(self) -> int:
        """Number of target values."""
        return int(self.sums[3].item())

    def error(self, change: Tensor) -> float:
        """Mean squared error over the targets' variance, of the prior plus a change (g, D, O / g).

        |R - X C|^2 = |R|^2 - 2 tr(C'X'R) + tr(C'X'X C).
        """
        left, total, squares, count = self.sums.tolist()
        product = (change * (self.gram @ change - 2 * self.cross)).sum().item()
        return relative_error(max(left + product, 0.0), total, squares, count)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.gram + other.gram, self.cross + other.cross, self.sums + other.sums)
