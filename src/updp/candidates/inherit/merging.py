"""Merging a linear branch to one operator per segment, and the skip into it where that is exact."""

import torch
from torch import Tensor

from updp import algebra
from updp.algebra import Affine, Operator
from updp.blocks import Chain, LinearStep, ScaleStep
from updp.blocks.folding import chain_operator, factor_of, fold_norm, operator_of
from updp.candidates.inherit.branch import LinearBranch
from updp.candidates.inherit.placement import Placed


def merge_branch(branch: LinearBranch) -> list[Operator]:
    """Merge the branch at lambda 1 in evaluation mode, to one operator per segment."""
    operators: list[Operator] = []
    before: Affine | None = None
    segment = -1
    for placed in branch.placed:
        if isinstance(placed.step, LinearStep):
            operator = operator_of(placed.step, placed.shrunk)
            if placed.segment == segment:
                operators[-1] = algebra.compose(operators[-1], operator)
            else:
                operators.append(operator)
            segment = placed.segment
        elif (affine := _affine_at(branch, placed, operators)) is None:
            continue
        elif operators:
            operators[-1] = algebra.after(operators[-1], affine)
        else:
            before = affine if before is None else algebra.chain(before, affine)
    if before is not None:
        operators[0] = algebra.before(before, operators[0])
    return operators


def merge_skip(
    operators: list[Operator], skip: Chain | None, end: Affine
) -> Operator | Tensor | None:
    """Merge the skip into a single operator, in place; else return what stays beside the branch.

    `end(branch + skip) = scale * branch + shift + scale * skip`, so what stays is an operator, or
    the scale (C,) of the block's own skip.

    Args:
        operators: the merged branch, without its end norm; the first may change.
        skip: the block's skip; None where it could not be read as a chain.
        end: the end norm, on the sum of both.
    """
    first = operators[0]
    beside = None
    if skip is not None:
        beside = chain_operator(skip, first.in_channels, first.weight.device)
    if beside is not None and len(operators) == 1:
        try:
            operators[0] = algebra.add(operators[0], beside)
            return None
        except ValueError:  # strides or sizes differ: it stays an add
            pass
    if beside is None or skip is None or not skip.steps:
        return end.scale
    return algebra.after(beside, Affine(end.scale, torch.zeros_like(end.shift)))


def _affine_at(branch: LinearBranch, placed: Placed, operators: list[Operator]) -> Affine | None:
    """Return what the step at a place does per channel; None where it is an activation."""
    if isinstance(placed.step, ScaleStep):
        if operators:
            return factor_of(placed.step, operators[-1].bias)
        first = branch.chain.linears[0]
        like = first.weight.new_empty(first.in_channels, dtype=torch.float64)
        return factor_of(placed.step, like)
    norm = branch.norm_at(placed)
    return None if norm is None else fold_norm(norm)
