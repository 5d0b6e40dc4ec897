"""Merge a linear branch to one operator per segment, and its skip into that where exact."""

from dataclasses import replace

import torch
from torch import Tensor

from updp import algebra
from updp.algebra import Affine, Operator, centre_tap
from updp.blocks import Chain, LinearStep, ScaleStep, ShuffleStep
from updp.blocks.folding import chain_operator, factor_of, fold_norm, operator_of
from updp.candidates.inherit.branch import LinearBranch
from updp.candidates.inherit.placement import Placed


def merge_branch(branch: LinearBranch, *, structure: bool = False) -> list[Operator]:
    """Merge the branch at lambda 1 in evaluation mode, to one operator per segment.

    With `structure` only for what each weight reads: it is 0 where masks hide all, else positive.
    """
    operators: list[Operator] = []
    first = branch.chain.linears[0]
    front: Operator | None = None  # the steps before the first operator, merged
    segment = -1
    for placed in branch.placed:
        if isinstance(placed.step, LinearStep):
            operator = (_structure_of if structure else operator_of)(placed.step, placed.shrunk)
            if placed.segment == segment:
                operators[-1] = algebra.compose(operators[-1], operator)
            else:
                operators.append(operator)
            segment = placed.segment
        elif structure and not isinstance(placed.step, ShuffleStep):
            continue  # it acts on each channel alone
        elif operators:
            operators[-1] = _with_step(operators[-1], branch, placed)
        else:
            channels, device = first.in_channels, first.weight.device
            start = algebra.identity(channels, channels, device, branch.chain.dims)
            front = _with_step(front or start, branch, placed)
    if front is not None:
        operators[0] = algebra.compose(front, operators[0])
    return operators


def merge_skip(
    operators: list[Operator], skip: Chain | None, end: Affine
) -> Operator | Tensor | None:
    """Merge the skip into a single operator, in place; else return it to be added to the branch.

    `end(branch + skip) = scale * branch + shift + scale * skip`, so the result is an operator, or
    the scale (C,) of the block's own skip.

    Args:
        operators: the merged branch, without its end norm; the first may change.
        skip: the block's skip; None if it could not be read as a chain.
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


def free_weights(branch: LinearBranch, skip: Chain | None) -> list[Tensor | None]:
    """Which weights of each merged operator may be other than 0; None where all may.

    What masks of the branch's operators hide, their product hides, too (see `LinearStep.mask`); a
    skip that goes into the operator shows what it reads itself. The last entry is for a skip that
    stays an operator beside the branch.
    """
    first = branch.chain.linears[0]
    beside = None
    if skip is not None:
        beside = chain_operator(skip, first.in_channels, first.weight.device)
    shown = None
    if skip is not None and beside is not None and _is_masked(skip):
        shown = beside.weight != 0
    if not _is_masked(branch.chain):
        return [*[None] * (1 + branch.placed[-1].segment), shown]
    operators = merge_branch(branch, structure=True)
    if beside is not None and len(operators) == 1:
        try:
            positive = replace(beside, weight=beside.weight.abs())
            operators[0] = algebra.add(operators[0], positive)
        except ValueError:  # as in `merge_skip`
            pass
    return [*(operator.weight != 0 for operator in operators), shown]


def _is_masked(chain: Chain) -> bool:
    return any(step.mask is not None for step in chain.linears)


def _structure_of(step: LinearStep, shrunk: bool) -> Operator:
    """The operator with ones for weights, and zeros where the step's mask hides them."""
    operator, mask = operator_of(step, shrunk), step.mask
    ones = torch.ones_like(step.exact_weight) if mask is None else mask.double()
    return replace(operator, weight=centre_tap(ones) if shrunk else ones)


def _with_step(operator: Operator, branch: LinearBranch, placed: Placed) -> Operator:
    """Return the operator with the step at a place behind it; unchanged if the step is removed."""
    if isinstance(placed.step, ScaleStep):
        return algebra.after(operator, factor_of(placed.step, operator.bias))
    if isinstance(placed.step, ShuffleStep):
        return algebra.reorder(operator, placed.step.order.to(operator.bias.device))
    norm = branch.norm_at(placed)
    return operator if norm is None else algebra.after(operator, fold_norm(norm))
