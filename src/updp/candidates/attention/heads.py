"""Self-attention as matrices of its heads, and the function that computes it from them."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.candidates.attention.offsets import Offsets


@dataclass(frozen=True)
class Heads:
    """Per-head projection matrices of self-attention on tokens (N, T, C).

    The last column of query, key and value is the bias; `query` includes the scale of the logits.

    query, key:  (heads, D, C + 1)
    value:       (heads, E, C + 1)
    out:         (O, heads * E), weight of the output layer, which reads the values head by head
    bias:        (O,), bias of the output layer
    offsets:     (windows, heads, T, T), added to the logits, or None
    causal:      whether a token attends only to itself and earlier tokens
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    bias: Tensor
    offsets: Tensor | None = None
    causal: bool = False

    @property
    def count(self) -> int:
        """Number of heads."""
        return len(self.query)

    @property
    def sizes(self) -> tuple[int, int]:
        """Channels of a head's keys, and channels of its values."""
        return self.key.shape[1], self.value.shape[1]

    def mix(self, tokens: Tensor, queries: int | None = None) -> Tensor:
        """The heads' values mixed by attention, (N, T, heads * E), for tokens (N, T, C).

        `queries` limits the output to the first tokens.
        """
        x = with_one(tokens)
        q, k, v = (
            torch.einsum("htc,nsc->nhst", matrix, part)
            for matrix, part in ((self.query, x[:, :queries]), (self.key, x), (self.value, x))
        )
        images, offsets = None, self.offsets
        if offsets is not None:
            images = len(tokens) // len(offsets)
            offsets = offsets[:, :, :queries].flatten(0, 1)
        return _mix([q, k, v], self.count, images, offsets, self.causal, 1.0)

    def logits(self, tokens: Tensor) -> Tensor:
        """The products of queries and keys, (N, heads, T, T), for tokens (N, T, C)."""
        x = with_one(tokens)
        q, k = (torch.einsum("htc,nsc->nhst", matrix, x) for matrix in (self.query, self.key))
        return q @ k.mT

    def attend(self, tokens: Tensor, queries: int | None = None) -> Tensor:
        """The attention's output (N, T, O) for tokens (N, T, C).

        `queries` limits the output to the first tokens.
        """
        return self.mix(tokens, queries) @ self.out.mT + self.bias

    def modules(self, like: Tensor) -> dict[str, nn.Module]:
        """Modules for `attend`: `qkv`, one linear layer for queries, keys and values, and `out`.

        If there are offsets, also `offsets`.
        """
        query = self.query * sqrt(self.sizes[0])  # torch divides the logits by this root
        rows = torch.cat([m.flatten(0, 1) for m in (query, self.key, self.value)])
        qkv, out = _linear(rows[:, :-1], rows[:, -1], like), _linear(self.out, self.bias, like)
        offsets = {} if self.offsets is None else {"offsets": Offsets(self.offsets.to(like))}
        return {"qkv": qkv, "out": out, **offsets}


def with_one(x: Tensor) -> Tensor:
    """Append a 1 to vectors (..., C)."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)


def attend(
    y: Tensor,
    sizes: tuple[int, int, int],
    images: int | None = None,
    offsets: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """The heads' outputs from stacked queries, keys, values (N, T, heads * (2 keys + values)).

    Uses only operations that every runtime supports; `y` may be an `fx.Proxy`.

    Args:
        y: output of the layer of queries, keys and values.
        sizes: number of heads, channels of their keys, channels of their values.
        images: number of images, if the first axis holds several windows per image, one after
            another; None if it holds one entry per image.
        offsets: added to the logits, (windows * heads, T, T).
        causal: whether a token attends only to itself and earlier tokens.
    """
    heads, keys, values = sizes
    parts, start = [], 0
    for size in (keys, keys, values):
        part = y.narrow(-1, start, heads * size)
        parts.append(torch.unflatten(part, -1, (heads, size)).transpose(1, 2))
        start += heads * size
    return _mix(parts, heads, images, offsets, causal)


def _mix(
    parts: list[Tensor],
    heads: int,
    images: int | None,
    offsets: Tensor | None,
    causal: bool,
    scale: float | None = None,
) -> Tensor:
    """Attention of queries, keys, values (N, heads, T, D); output (N, T, heads * D)."""
    if images is not None:
        parts = [part.unflatten(0, (images, -1)).flatten(1, 2) for part in parts]  # type: ignore[no-untyped-call]
    mixed = F.scaled_dot_product_attention(
        parts[0], parts[1], parts[2], attn_mask=offsets, is_causal=causal, scale=scale
    )
    if images is not None:
        mixed = torch.unflatten(mixed, 1, (-1, heads)).flatten(0, 1)
    return mixed.transpose(1, 2).flatten(2)


def _linear(weight: Tensor, bias: Tensor, like: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, device="meta")  # draws no random numbers
    layer.weight, layer.bias = nn.Parameter(weight.to(like)), nn.Parameter(bias.to(like))
    return layer
