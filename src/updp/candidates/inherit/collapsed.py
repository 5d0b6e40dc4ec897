"""Trainable merged operators: the parameters of a form that is fitted, or merged early."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.algebra import Operator, convolve
from updp.blocks.reading.steps import per_channel
from updp.candidates.parts.merged_block import MergedBlock


class TrainableOperator(nn.Module):
    """An operator with parameters: its weight (O, I / groups, kh, kw) and its bias (O,).

    Their dtype and device are those of `like`.
    """

    def __init__(self, operator: Operator, layout: str, like: Tensor) -> None:
        super().__init__()
        self.layout, self.shape = layout, operator
        self.weight = nn.Parameter(operator.weight.to(like))
        self.bias = nn.Parameter(operator.bias.to(like))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x, (N, I, ...) in layout `first` or (..., I) in layout `last`."""
        if self.layout == "last":
            return F.linear(x, self.weight.flatten(1), self.bias)
        shape = self.shape
        x = F.pad(x, shape.padding) if any(shape.padding) else x
        dilation, groups = shape.dilation, shape.groups
        return convolve(x, self.weight, self.bias, shape.stride, 0, dilation, groups)

    def operator(self) -> Operator:
        """Copy the parameters into an operator in float64."""
        weight, bias = self.weight.detach().double().clone(), self.bias.detach().double().clone()
        return replace(self.shape, weight=weight, bias=bias)

    @torch.no_grad()
    def set(self, operator: Operator) -> None:
        """Copy the weights of an operator of the same shape."""
        self.weight.copy_(operator.weight)
        self.bias.copy_(operator.bias)


class Collapsed(nn.Module):
    """`operators(x) + skip` of a `MergedBlock` as parameters, without its end activation.

    Their dtype and device are those of `like`.
    """

    def __init__(self, merged: MergedBlock, like: Tensor) -> None:
        super().__init__()
        self._merged = merged
        layout, skip = merged.layout, merged.skip
        self.operators = nn.ModuleList(
            TrainableOperator(op, layout, like) for op in merged.operators
        )
        self.skip = TrainableOperator(skip, layout, like) if isinstance(skip, Operator) else None
        self.scale = nn.Parameter(skip.to(like)) if isinstance(skip, Tensor) else None

    @property
    def last(self) -> TrainableOperator:
        """The last operator, which is fitted."""
        operator = self.operators[-1]
        assert isinstance(operator, TrainableOperator)
        return operator

    def forward(self, x: Tensor, beside: Tensor | None) -> Tensor:
        """Return the value before the end activation.

        `x` enters the branch, and `beside` is the value of the block's own skip, both in the
        canonical layout.
        """
        y: Tensor = self.last(self.before_last(x))
        skip = self.skip_value(x, beside)
        return y if skip is None else y + skip

    def before_last(self, x: Tensor) -> Tensor:
        """Return the input of the last operator."""
        for operator in self.operators[:-1]:
            x = operator(x)
        return x

    def skip_value(self, x: Tensor, beside: Tensor | None) -> Tensor | None:
        """Return what is added to the branch; None where the skip is in its operator."""
        if self.skip is not None:
            value: Tensor = self.skip(x)
            return value
        if self.scale is None:
            return None
        assert beside is not None
        return beside * per_channel(self.scale, self._merged.layout, beside.ndim)

    def merged(self) -> MergedBlock:
        """See `Form.merged`."""
        operators = tuple(own.operator() for own in self.operators)  # type: ignore[operator]
        skip: Operator | Tensor | None = None
        if self.skip is not None:
            skip = self.skip.operator()
        elif self.scale is not None:
            skip = self.scale.detach().double().clone()
        return replace(self._merged, operators=operators, skip=skip)
