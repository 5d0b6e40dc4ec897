"""Fold the steps of a chain into float64 operators and per-channel affine maps."""

import torch
from torch import Tensor, nn

from updp import algebra
from updp.algebra import Affine, Operator, centre_tap
from updp.blocks.reading.linear import LinearStep
from updp.blocks.reading.steps import (
    Chain,
    NormStep,
    ScaleStep,
    ShuffleStep,
    Step,
    is_affine,
)


def operator_of(step: LinearStep, shrunk: bool = False) -> Operator:
    """The step as a float64 operator; with `shrunk`, only its centre tap, without padding."""
    weight, bias = step.exact_weight, step.bias
    return Operator(
        centre_tap(weight) if shrunk else weight.clone(),
        weight.new_zeros(len(weight)) if bias is None else bias.detach().double().clone(),
        step.stride,
        () if shrunk else step.padding,
        step.dilation,
        step.groups,
    )


def chain_operator(chain: Chain, channels: int, device: torch.device) -> Operator | None:
    """Compose a chain of linear operators, scales and BatchNorms into one operator.

    Returns None if that is not exact: padding behind a spatial kernel or a bias pads with zeros
    where the composed operator would see other values, so borders differ.
    """
    # Start from a depthwise identity: composing with a dense one would lose the groups.
    operator = algebra.identity(channels, channels, device, chain.dims)
    for step in chain.steps:
        if isinstance(step, LinearStep):
            if any(step.padding) and (not operator.is_pointwise or operator.bias.any()):
                return None
            operator = algebra.compose(operator, operator_of(step))
        elif is_affine(step):
            operator = algebra.after(operator, affine_of(step, operator.bias))
        elif isinstance(step, ShuffleStep):
            operator = algebra.reorder(operator, step.order.to(device))
        else:
            return None
    return operator


def affine_of(step: Step, like: Tensor) -> Affine:
    """A step for which `is_affine` holds, as an affine map on the channels of `like` (C,)."""
    if isinstance(step, ScaleStep):
        return factor_of(step, like)
    assert isinstance(step, NormStep)
    return fold_norm(step.module)  # type: ignore[arg-type]


def fold_norm(norm: nn.Module) -> Affine:
    """A BatchNorm in evaluation mode as an affine map, with its own eps."""
    mean, var = norm.running_mean, norm.running_var
    weight, bias = norm.weight, norm.bias
    return algebra.from_batchnorm(mean, var, weight, bias, norm.eps)  # type: ignore[arg-type]


def factor_of(step: ScaleStep, like: Tensor) -> Affine:
    """The scale as an affine map without shift, on the device and in the dtype of `like` (C,)."""
    scale = step.exact.flatten().to(like).expand_as(like).clone()
    return Affine(scale, torch.zeros_like(scale))
