"""A site's fit: what is gathered from the baseline, what from the pruned prefix, what is set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from updp.fit.regression import Fitted, Regression


@dataclass(frozen=True)
class FitTask:
    """One regression. All tensors that its functions give are maps (N, C, H, W); see `as_maps`.

    `target`: what the baseline's block gives, before its end activation, for its own input.
    `inputs`: for the input that the site has after the pruned prefix, what the operator reads,
    and what is added to what it gives (or None). `take` puts the operator that was found in place.
    `operator` is the name, within its block, of the one that is fitted.
    """

    operator: str
    regression: Regression
    target: Callable[..., Tensor]
    inputs: Callable[..., tuple[Tensor, Tensor | None]]
    take: Callable[[Fitted], None]

    def add_target(self, batch: int, x: Tensor, *extras: Any) -> None:
        """Note the baseline's output for its input `x` in the batch of that number."""
        self.regression.target(batch, self.target(x, *extras))

    def add_input(self, batch: int, x: Tensor, *extras: Any) -> None:
        """Note what the operator sees for the pruned prefix' `x`, in the same batch."""
        self.regression.input(batch, *self.inputs(x, *extras))

    def finish(self) -> Fitted:
        """Solve, and put the operator in place; the rows are no longer needed."""
        fitted = self.regression.solve()
        self.regression.clear()
        self.take(fitted)
        return fitted


def as_maps(x: Tensor, layout: str) -> Tensor:
    """A canonical tensor as (N, C, H, W); tokens (N, T, C) become one column."""
    if layout == "first":
        return x
    return x.flatten(1, -2).movedim(-1, 1)[..., None] if x.ndim > 2 else x[..., None, None]
