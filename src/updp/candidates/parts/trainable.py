"""An operator with parameters, to be fitted or trained."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.algebra import Operator, convolve


class TrainableOperator(nn.Module):
    """An operator with parameters: its weight (O, I / groups, kh, kw) and its bias (O,).

    Both have the dtype and device of `like`.
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
        """Copy weight and bias from an operator of the same shape."""
        self.weight.copy_(operator.weight)
        self.bias.copy_(operator.bias)
