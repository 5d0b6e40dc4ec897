"""A form whose parameters are those of its merged operators: what is fitted, or merged early."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.algebra import Operator
from updp.candidates.parts.merged_block import MergedBlock


class OwnOperator(nn.Module):
    """An operator as it is trained: its weight (O, I / groups, kh, kw) and its bias (O,)."""

    def __init__(self, operator: Operator, layout: str, like: Tensor) -> None:
        super().__init__()
        self.layout, self.shape = layout, replace(operator)
        self.weight = nn.Parameter(operator.weight.to(like))
        self.bias = nn.Parameter(operator.bias.to(like))

    def forward(self, x: Tensor) -> Tensor:
        """On a canonical tensor: (N, I, H, W) when `first`, (..., I) when `last`."""
        if self.layout == "last":
            return F.linear(x, self.weight.flatten(1), self.bias)
        shape = self.shape
        x = F.pad(x, shape.padding) if any(shape.padding) else x
        return F.conv2d(x, self.weight, self.bias, shape.stride, 0, shape.dilation, shape.groups)

    def operator(self) -> Operator:
        """As data, in float64."""
        weight, bias = self.weight.detach().double().clone(), self.bias.detach().double().clone()
        return replace(self.shape, weight=weight, bias=bias)

    @torch.no_grad()
    def set(self, operator: Operator) -> None:
        """Take the weights of an operator of the same shape."""
        self.weight.copy_(operator.weight)
        self.bias.copy_(operator.bias)


class Collapsed(nn.Module):
    """`operators(x) + skip`, as in `MergedBlock`, in parameters; the end activation is not here.

    They are of the dtype and on the device of `like`.
    """

    def __init__(self, merged: MergedBlock, like: Tensor) -> None:
        super().__init__()
        self._merged = merged
        layout, skip = merged.layout, merged.skip
        self.operators = nn.ModuleList(OwnOperator(op, layout, like) for op in merged.operators)
        self.skip = OwnOperator(skip, layout, like) if isinstance(skip, Operator) else None
        self.scale = nn.Parameter(skip.to(like)) if isinstance(skip, Tensor) else None

    @property
    def last(self) -> OwnOperator:
        """The last operator, which is the one that is fitted."""
        own = self.operators[-1]
        assert isinstance(own, OwnOperator)
        return own

    def forward(self, x: Tensor, beside: Tensor | None) -> Tensor:
        """The value before the end activation; `beside` is the skip's, canonical as `x` is."""
        y = self.last(self.before_last(x))
        kept = self.kept(x, beside)
        return y if kept is None else y + kept

    def before_last(self, x: Tensor) -> Tensor:
        """What the last operator reads."""
        for operator in self.operators[:-1]:
            x = operator(x)
        return x

    def kept(self, x: Tensor, beside: Tensor | None) -> Tensor | None:
        """What is added to the last operator's output; None when the skip is in the operator."""
        if self.skip is not None:
            return self.skip(x)
        if self.scale is None:
            return None
        assert beside is not None
        return beside * (self.scale if self._merged.layout == "last" else self.scale[:, None, None])

    def merged(self) -> MergedBlock:
        """See `Form.merged`."""
        operators = tuple(own.operator() for own in self.operators)  # type: ignore[operator]
        skip: Operator | Tensor | None = None
        if self.skip is not None:
            skip = self.skip.operator()
        elif self.scale is not None:
            skip = self.scale.detach().double().clone()
        return replace(self._merged, operators=operators, skip=skip)
