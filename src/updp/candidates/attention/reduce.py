"""Fewer and smaller heads: choose which to keep, and the best low-rank form on given tokens.

The logits of a head are a bilinear form of rank D in the tokens. The nearest form of rank r, with
queries and keys taken as independent, comes from the singular value decomposition of
Q^1/2 K^1/2, where Q is the second moment of the queries and K the covariance of an image's keys:
a part common to all keys of an image cancels in the softmax. For values it comes from V^1/2 W',
where V is the covariance of a head's output and W the weight that reads it (weighted low rank, as
in CORP).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from updp.candidates.attention.heads import Heads, with_one
from updp.fit.channels import select_channels
from updp.fit.ridge import Ridge, check_finite

_STRENGTH = 1e-4  # strength of the ridges, the same as when a fit chooses channels
_LEAST = 1e-12  # singular values below this share of the largest count as zero


def reduced(heads: Heads, tokens: Tensor, count: int, keys: int, values: int) -> Heads:
    """Reduce attention to `count` heads with keys and values of the given sizes.

    Args:
        heads: the matrices, in float64.
        tokens: input of the attention, (N, T, C) in float64.
        count: number of heads.
        keys: channels of the queries and keys of each head.
        values: channels of the values of each head.

    Raises UserError: the tokens are infinite or NaN.
    """
    wanted = heads.attend(tokens)
    check_finite(wanted)
    if count < heads.count:
        heads = _fewer(heads, tokens, wanted, count)
    if keys < heads.sizes[0]:
        heads = _smaller_keys(heads, tokens, keys)
    if values < heads.sizes[1]:
        heads = _smaller_values(heads, tokens, values)
    return _read_again(heads, tokens, wanted)


def _fewer(heads: Heads, tokens: Tensor, wanted: Tensor, count: int) -> Heads:
    """Keep the `count` heads that best make up for the others, by the optimal brain surgeon."""
    ridge, cross = _ridge(heads, tokens, wanted)
    size = heads.sizes[1]
    left = select_channels(ridge.inverse()[0], ridge.solve(cross)[0], size, count)
    out = torch.unflatten(heads.out, 1, (-1, size))[:, left].flatten(1)
    query, key, value = (matrix[left] for matrix in (heads.query, heads.key, heads.value))
    offsets = None if heads.offsets is None else heads.offsets[:, left]
    return replace(heads, query=query, key=key, value=value, out=out, offsets=offsets)


def _smaller_keys(heads: Heads, tokens: Tensor, size: int) -> Heads:
    x = with_one(tokens)
    q = torch.einsum("hdc,ntc->hntd", heads.query, x).flatten(1, 2)
    k = torch.einsum("hdc,ntc->hntd", heads.key, x)
    k = (k - k.mean(2, keepdim=True)).flatten(1, 2)
    roots = [_root(part.mT @ part / part.shape[1]) for part in (q, k)]
    u, s, vh = torch.linalg.svd(roots[0] @ roots[1])
    u, s, vh = u[:, :, :size], _inverse_root(s[:, :size]), vh[:, :size]
    query = s[:, :, None] * (vh @ roots[1] @ heads.query)
    key = s[:, :, None] * (u.mT @ roots[0] @ heads.key)
    return replace(heads, query=query, key=key)


def _smaller_values(heads: Heads, tokens: Tensor, size: int) -> Heads:
    given = torch.unflatten(heads.mix(tokens), -1, (heads.count, -1)).flatten(0, 1).transpose(0, 1)
    mean = given.mean(1, keepdim=True)
    root = _root((given - mean).mT @ (given - mean) / given.shape[1])
    out = torch.unflatten(heads.out, 1, (heads.count, -1)).transpose(0, 1)  # (heads, O, E)
    u, s, vh = torch.linalg.svd(root @ out.mT, full_matrices=False)
    u, vh = u[:, :, :size], vh[:, :size]
    s = torch.where(s[:, :size] > _LEAST * s[:, :1], 1 / s[:, :size], 0)
    back = s[:, :, None] * (vh @ out)  # (heads, size, E), from the old values to the new ones
    new = out @ root @ u
    lost = (out - new @ back) @ mean.mT
    return replace(
        heads,
        value=back @ heads.value,
        out=new.transpose(0, 1).flatten(1),
        bias=heads.bias + lost.sum((0, 2)),
    )


def _read_again(heads: Heads, tokens: Tensor, wanted: Tensor) -> Heads:
    """The heads with the output layer fitted again, to the outputs `wanted` (N, T, O)."""
    ridge, cross = _ridge(heads, tokens, wanted)
    weights = ridge.solve(cross)[0].mT
    return replace(heads, out=weights[:, :-1], bias=weights[:, -1])


def _ridge(heads: Heads, tokens: Tensor, wanted: Tensor) -> tuple[Ridge, Tensor]:
    """The regression of `wanted` on the heads' outputs, and X'T, (1, D + 1, O)."""
    rows = with_one(heads.mix(tokens)).flatten(0, 1)[None]
    prior = torch.cat([heads.out, heads.bias[:, None]], 1).mT[None]
    return Ridge(rows.mT @ rows, prior, _STRENGTH), rows.mT @ wanted.flatten(0, 1)[None]


def _root(moment: Tensor) -> Tensor:
    """The symmetric square roots of symmetric matrices (g, D, D)."""
    values, vectors = torch.linalg.eigh(moment)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT
    return root


def _inverse_root(s: Tensor) -> Tensor:
    """The inverse square roots of singular values (g, r); zero for those that count as zero."""
    root: Tensor = torch.where(s > _LEAST * s[:, :1], s.rsqrt(), 0)
    return root
