"""Self-attention as matrices of its heads, and the function that computes it from them."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Heads:
    """Per-head projection matrices of self-attention on tokens (N, T, C).

    The last column of queries, keys and values is the bias; the scale of the logits is in `query`.

    query, key:  (heads, D, C + 1)
    value:       (heads, E, C + 1)
    out:         (O, heads * E), what reads the heads' values, head by head
    bias:        (O,)
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    bias: Tensor

    @property
    def count(self) -> int:
        """Number of heads."""
        return len(self.query)

    @property
    def sizes(self) -> tuple[int, int]:
        """Channels of a head's keys, and of its values."""
        return self.key.shape[1], self.value.shape[1]

    def mix(self, tokens: Tensor, queries: int | None = None) -> Tensor:
        """The heads' values (N, T, heads * E), mixed by attention, for tokens (N, T, C).

        `queries` limits the output to the first tokens.
        """
        x = with_one(tokens)
        q, k, v = (
            torch.einsum("htc,nsc->nhst", matrix, part)
            for matrix, part in ((self.query, x[:, :queries]), (self.key, x), (self.value, x))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return mixed.transpose(1, 2).flatten(2)

    def attend(self, tokens: Tensor, queries: int | None = None) -> Tensor:
        """The attention's output (N, T, O) for tokens (N, T, C).

        `queries` limits the output to the first tokens.
        """
        return self.mix(tokens, queries) @ self.out.mT + self.bias

    def layers(self, like: Tensor) -> tuple[nn.Linear, nn.Linear]:
        """The linear layer of queries, keys and values in one, for `attend`, and the output's."""
        query = self.query * sqrt(self.sizes[0])  # by which torch divides
        rows = torch.cat([m.flatten(0, 1) for m in (query, self.key, self.value)])
        return _linear(rows[:, :-1], rows[:, -1], like), _linear(self.out, self.bias, like)


def with_one(x: Tensor) -> Tensor:
    """Vectors (..., C) with a 1 behind their entries."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)


def attend(y: Tensor, heads: int, keys: int, values: int) -> Tensor:
    """What heads give: of queries, keys and values (N, T, heads * (2 keys + values)) in one.

    Of operations that every runtime knows; it takes an `fx.Proxy`, too.
    """
    parts, start = [], 0
    for size in (keys, keys, values):
        part = y.narrow(-1, start, heads * size)
        parts.append(torch.unflatten(part, -1, (heads, size)).transpose(1, 2))
        start += heads * size
    mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
    return mixed.transpose(1, 2).flatten(2)


def _linear(weight: Tensor, bias: Tensor, like: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, device="meta")  # draws no random numbers
    layer.weight, layer.bias = nn.Parameter(weight.to(like)), nn.Parameter(bias.to(like))
    return layer
