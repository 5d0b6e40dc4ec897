"""Sums over the rows of a regression; sufficient for a fit without an end activation."""

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
    """Sums of products over rows, in float64; the rows themselves are not kept.

    They are sums of residuals, not of targets: near the prior residuals are small, so more exact.

    gram:      X'X, (g, D, D)
    cross:     X'R, with R the residuals of the prior, (g, D, O / g)
    sums:      sum of R^2, sum of targets, sum of squared targets, number of target values, (4,)
    """

    gram: Tensor
    cross: Tensor
    sums: Tensor
    is_total: bool = False  # whether the sums are over all processes

    @classmethod
    def of(cls, groups: int, unknowns: int, outputs: int, device: torch.device) -> Moments:
        """Empty sums, to add rows to."""
        gram = torch.zeros(groups, unknowns, unknowns, dtype=torch.float64, device=device)
        return cls(gram, gram.new_zeros(groups, unknowns, outputs // groups), gram.new_zeros(4))

    def add(self, x: Tensor, residual: Tensor, target: Tensor) -> None:
        """Add rows: inputs (g, m, D), the prior's residuals and the targets, (g, m, O / g)."""
        self.gram.baddbmm_(x.mT, x)
        self.cross.baddbmm_(x.mT, residual)
        values = residual.square().sum(), target.sum(), target.square().sum()
        self.sums += torch.stack([*values, values[0].new_tensor(float(target.numel()))])

    def add_up(self) -> None:
        """Sum over all processes; done only once."""
        if not self.is_total:
            processes.all_reduce(self.gram, self.cross, self.sums)
            self.is_total = True

    @property
    def count(self) -> int:
        """Number of target values."""
        return int(self.sums[3].item())

    def error(self, change: Tensor) -> float:
        """Error of prior + `change` (g, D, O / g): mean squared error over the targets' variance.

        |R - X C|^2 = |R|^2 - 2 tr(C'X'R) + tr(C'X'X C).
        """
        left, total, squares, count = self.sums.tolist()
        product = (change * (self.gram @ change - 2 * self.cross)).sum().item()
        return relative_error(max(left + product, 0.0), total, squares, count)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.gram + other.gram, self.cross + other.cross, self.sums + other.sums)
