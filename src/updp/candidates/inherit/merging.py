"""Merging a linear branch: one operator for each segment, and the skip in it where it fits."""

import torch
from torch import Tensor

from updp import algebra
from updp.algebra import Affine, Operator
from updp.blocks import Chain, LinearStep, ScaleStep
from updp.blocks.folding import chain_operator, factor_of, fold_norm, operator_of
from updp.candidates.inherit.branch import LinearBranch
from updp.candidates.inherit.placement import Placed


def merge_branch(branch: LinearBranch) -> list[Operator]:
    """The branch at lambda 1 in evaluation, one operator for each segment."""
    operators: list[Operator] = []
    before: Affine | None = None
    segment = -1
    for stage in branch.stages:
        if isinstance(stage.step, LinearStep):
            operator = operator_of(stage.step, stage.shrunk)
            if stage.segment == segment:
                operators[-1] = algebra.compose(operators[-1], operator)
            else:
                operators.append(operator)
            segment = stage.segment
        elif (affine := _affine(branch, stage, operators)) is None:
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
    """Take the skip into a single operator, in place; else return what stays beside it.

    end(branch + skip) = scale * branch + shift + scale * skip. A `skip` of None is no chain: it is
    scaled channel by channel.
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


def _affine(branch: LinearBranch, stage: Placed, operators: list[Operator]) -> Affine | None:
    if isinstance(stage.step, ScaleStep):
        if operators:
            return factor_of(stage.step, operators[-1].bias)
        first = branch.chain.linears[0]
        like = first.weight.new_empty(first.in_channels, dtype=torch.float64)
        return factor_of(stage.step, like)
    norm = branch.norm_at(stage)
    return None if norm is None else fold_norm(norm)
