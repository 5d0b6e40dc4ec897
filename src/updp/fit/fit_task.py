"""Fit tasks: a regression with the functions that compute its rows and install its result."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from updp.fit.regression import Fitted, Regression


@dataclass(frozen=True)
class FitTask:
    """A regression of one operator; its functions return maps (N, C, H, W), see `as_maps`.

    operator:    path of the operator in its block
    regression:  the rows and the solver
    target:      computes the block's output before its end activation, from the baseline's input
    inputs:      computes the operator's input and what is added to its output (or None), from the
        site's input behind the pruned prefix
    install:     installs the fitted operator in the block
    rows:        key of the rows: tasks of one site with equal keys have the same rows at first
    """

    operator: str
    regression: Regression
    target: Callable[..., Tensor]
    inputs: Callable[..., tuple[Tensor, Tensor | None]]
    install: Callable[[Fitted], None]
    rows: Hashable = None

    def try_to_share(self, other: "FitTask") -> bool:
        """Use the sums of another task with the same rows; return False if that is not possible."""
        if self.rows is None or self.rows != other.rows:
            return False
        return self.regression.try_to_share(other.regression)

    def add_target(self, batch: int, x: Tensor, *extras: Any) -> None:
        """Add the targets of one batch, for the baseline's input `x` of the site."""
        self.regression.add_targets(batch, self.target(x, *extras))

    def add_input(self, batch: int, x: Tensor, *extras: Any) -> bool:
        """Add the inputs of one batch, for the site's input `x` behind the pruned prefix.

        Returns False where they have no targets, see `Regression.add_inputs`.
        """
        return self.regression.add_inputs(batch, *self.inputs(x, *extras))

    def finish(self) -> Fitted:
        """Solve the regression, free its rows, and put the operator in place."""
        fitted = self.regression.solve()
        self.regression.clear()
        self.install(fitted)
        return fitted


def observer(
    number: int, targets: Sequence[FitTask], inputs: Sequence[FitTask]
) -> Callable[..., None]:
    """Hook that gives a site's inputs to the tasks that want its target, its input, or both."""

    def observe(x: Tensor, *extras: Any) -> None:
        for task in targets:
            task.add_target(number, x, *extras)
        for task in inputs:
            task.add_input(number, x, *extras)

    return observe


def as_maps(x: Tensor, layout: str) -> Tensor:
    """View a tensor as maps (N, C, H, W): channels last becomes (N, C, pixels, 1)."""
    if layout == "first":
        return x
    return x.flatten(1, -2).movedim(-1, 1)[..., None] if x.ndim > 2 else x[..., None, None]
