"""An operator with parameters, to be fitted or trained."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.algebra import Operator, convolve


class TrainableOperator(nn.Module):
    """An operator with parameters: its weight (O, I / groups, kh, kw) and its bias (O,).

    Their dtype and device are those of `like`. `free` says which weights may be other than 0, where
    a mask of the block hides the others.
    """

    free: Tensor | None

    def __init__(
        self, operator: Operator, layout: str, like: Tensor, free: Tensor | None = None
    ) -> None:
        super().__init__()
        self.layout, self.shape = layout, operator
        self.weight = nn.Parameter(operator.weight.to(like))
        self.bias = nn.Parameter(operator.bias.to(like))
        free = None if free is None else free.to(like.device)
        self.register_buffer("free", free, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x, (N, I, ...) in layout `first` or (..., I) in layout `last`."""
        if self.layout == "last":
            return F.linear(x, self._shown.flatten(1), self.bias)
        shape = self.shape
        x = F.pad(x, shape.padding) if any(shape.padding) else x
        dilation, groups = shape.dilation, shape.groups
        return convolve(x, self._shown, self.bias, shape.stride, 0, dilation, groups)

    def operator(self) -> Operator:
        """Copy the parameters into an operator in float64."""
        weight, bias = self._shown.detach().double().clone(), self.bias.detach().double().clone()
        return replace(self.shape, weight=weight, bias=bias)

    @property
    def _shown(self) -> Tensor:
        return self.weight if self.free is None else self.weight * self.free

    @torch.no_grad()
    def set(self, operator: Operator) -> None:
        """Copy weight and bias from an operator of the same shape."""
        self.weight.copy_(operator.weight)
        self.bias.copy_(operator.bias)
