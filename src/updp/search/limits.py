"""A budget resolved to absolute limits for one model on one device."""

import math

from updp.errors import UserError
from updp.recipe.budget import Budget
from updp.search.integer_program import IntegerProgram
from updp.search.space import Limits, Space


def limits_of(budget: Budget, space: Space) -> Limits:
    """Convert the budget to ms, MACs, parameters and bytes.

    Raises UserError, with the nearest reachable value, if a budget is out of reach, or if the
    baseline already meets it.
    """
    baseline = vars(space.baseline)
    limits = Limits(budget.limits(baseline), budget.blocks)
    program = IntegerProgram(space)
    count = sum(any(option.blocks for option in site.options) for site in space.sites)
    if budget.blocks is not None and budget.blocks > count:
        raise UserError(
            f"budget blocks={budget.blocks} is more than the {count} sites that can be "
            f"pruned: ask for blocks={count} at most (`updp inspect` lists them)"
        )
    for unit, limit in limits.amounts.items():
        if limit >= baseline[unit]:
            raise UserError(
                f"budget {unit}={getattr(budget, unit)} is no less than the baseline's "
                f"{amount(unit, baseline[unit])}: ask for less"
            )
        least = program.least(unit, Limits())
        if least is not None and least > limit * (1 + 1e-9):
            raise UserError(
                f"budget {unit}={getattr(budget, unit)} is out of reach: pruning whatever saves "
                f"most comes down to {unit}={_share(least, baseline[unit])}"
            )
    if program.best([0.0] * len(program.options), limits) is None:
        raise UserError(_unreachable_together(budget, limits, space, program))
    return limits


def _unreachable_together(
    budget: Budget, limits: Limits, space: Space, program: IntegerProgram
) -> str:
    """Message for limits that can be met one by one, but not all together."""
    for unit in limits.amounts:
        least = program.least(unit, limits.without(unit))
        if least is not None:
            share = _share(least, getattr(space.baseline, unit))
            return (
                f"budget {budget} is out of reach as a whole: with the rest of it met, {unit} "
                f"comes down to {unit}={share}"
            )
    return (
        f"budget {budget} is out of reach as a whole, though each limit alone can be met: relax "
        "several of them"
    )


def amount(unit: str, value: float) -> str:
    """Format a cost with its unit, as `Budget.parse` reads it: `12.3ms`, `2.5G`, `3MB`."""
    if unit == "latency":
        return f"{value:.3g}ms"
    for factor, name in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= factor:
            return f"{value / factor:.3g}{name}" + ("B" if unit == "memory" else "")
    return f"{value:.3g}" + ("B" if unit == "memory" else "")


def _share(value: float, whole: float) -> str:
    """The fraction of `whole`, rounded up, so that the budget in the message can be met."""
    return f"{math.ceil(1000 * value / whole - 1e-6) / 1000:.3f}"
