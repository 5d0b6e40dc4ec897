"""Recognise the self-attention of a branch from the inputs and outputs of its layers.

No names are used: layers that read the same tokens are taken as queries, keys and values, and what
they and the last layer would compute is compared with the branch's own values. Attention with a
mask as input, or with rotated queries, is therefore not recognised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, permutations, product
from math import sqrt
from typing import Any

import torch
from torch import Tensor, fx, nn

from updp.blocks import Site, TracedSite
from updp.blocks.layer_calls import LayerCall, recorded_calls
from updp.blocks.modules import UserCodeError
from updp.candidates.attention.heads import Heads
from updp.candidates.attention.offsets import SoftmaxWatcher, causal, is_small
from updp.candidates.attention.values import Values, equal
from updp.candidates.parts.trials import FLOAT32, FLOAT64, Precision, in_precision

Calls = list[LayerCall[nn.Module]]
_TRIED = 4  # tokens whose output is compared for each way to read the layers


@dataclass(frozen=True)
class HeadLayout:
    """Position of self-attention in a block, and how its layers hold the heads.

    start:     node of its input
    end:       node of its output
    norm:      the norm inside of the attention's own module; empty if there is none
    layers:    the linear layers of queries, keys and values: one or three; or torch's attention
    out:       the linear layer that reads the heads
    heads:     number of heads
    order:     positions of queries, keys and values in the layers
    by_head:   whether a single layer holds queries, keys and values head by head
    is_scaled: whether logits are divided by the root of the number of the keys' channels
    windows:   number of windows per image with offsets of their own; 0: no offsets
    causal:    whether a token attends only to itself and earlier tokens
    """

    start: str
    end: str
    norm: str
    layers: tuple[str, ...]
    out: str
    heads: int
    order: tuple[int, int, int] = (0, 1, 2)
    by_head: bool = False
    is_scaled: bool = True
    windows: int = 0
    causal: bool = False

    def read(self, block: nn.Module) -> Heads:
        """The matrices in float64. Raises AttributeError for a block without these layers."""
        modules = [block.get_submodule(name) for name in self.layers]
        rows = torch.cat([_matrix(module) for module in modules]).detach().double()
        out = _matrix(block.get_submodule(self.out)).detach().double()
        parts = torch.unflatten(rows, 0, (3, self.heads, -1))
        if self.by_head:
            parts = torch.unflatten(rows, 0, (self.heads, 3, -1)).transpose(0, 1)
        query, key, value = (parts[place] for place in self.order)
        if self.is_scaled:
            query = query / sqrt(query.shape[1])
        return Heads(query, key, value, out[:, :-1], out[:, -1], causal=self.causal)


def may_attend(site: Site) -> bool:
    """Whether a site is a residual branch on tokens (channels last), no chain, without a mask."""
    tokens = site.layout == "last" and len(site.shape_in) > 2
    told = any(isinstance(value, Tensor) or value is True for value in site.extras)
    return site.branch is None and site.region.add is not None and tokens and not told


@torch.no_grad()
def read_attention(traced: TracedSite) -> HeadLayout | None:
    """The layout of the branch's self-attention; None if none is recognised.

    Raises UserCodeError if the block does not run alone.
    """
    return in_precision(partial(_read, traced)) if may_attend(traced.site) else None


def _read(traced: TracedSite, precision: Precision) -> HeadLayout | None:
    block = precision.copy(traced.block)
    values, watcher = Values(replace(traced, block=block)), SoftmaxWatcher()
    with recorded_calls(_layers(block)) as calls, watcher:
        _ = values[values.last]
    ways = [*_of_torch(calls, traced.graph, values), *_of_layers(calls, values)]
    alone = ((layout, layout.read(block)) for layout in ways)
    added = (way for layout in ways for way in _with_offsets(layout, block, values, watcher))
    for layout, heads in chain(alone, added):
        if _computes(layout, heads, block, values):
            return layout if _holds(layout, heads, block, values) else None
    return None


@torch.no_grad()
def read_heads(layout: HeadLayout, traced: TracedSite) -> Heads:
    """The matrices of a block's heads in float64, with the offsets added to their logits.

    Raises AttributeError, IndexError, RuntimeError or UserCodeError if the layout does not match.
    """
    heads = layout.read(traced.block)
    if not layout.windows:
        return heads
    block = FLOAT64.copy(traced.block)
    values, watcher = Values(replace(traced, block=block)), SoftmaxWatcher()
    with watcher:
        _ = values[layout.end]
    logits = heads.logits(_tokens(layout, block, values))
    ways = [replace(heads, offsets=o) for o in watcher.offsets(logits, layout.windows)]
    # The branch may have other attention, too; with weights still to be loaded none may match.
    return next((way for way in ways if _computes(layout, way, block, values)), ways[0])


def _tokens(layout: HeadLayout, block: nn.Module, values: Values) -> Tensor:
    """Input (N, T, C) in float64 of the layers of queries, keys and values."""
    return _normed(layout, block, values[layout.start])


def _normed(layout: HeadLayout, block: nn.Module, tokens: Tensor) -> Tensor:
    return (block.get_submodule(layout.norm)(tokens) if layout.norm else tokens).double()


def _with_offsets(
    layout: HeadLayout, block: nn.Module, values: Values, watcher: SoftmaxWatcher
) -> Iterator[tuple[HeadLayout, Heads]]:
    """Variants of a layout and its heads, one for each constant possibly added to the logits."""
    tokens = _tokens(layout, block, values)
    if not watcher.saw(len(tokens), layout.heads, tokens.shape[1]):
        return
    heads = layout.read(block)
    for offsets in watcher.offsets(heads.logits(tokens)):
        if _same(offsets, causal(tokens.shape[1], offsets).expand_as(offsets)):
            yield replace(layout, causal=True), replace(heads, causal=True)
        elif len(offsets) == 1 or len(values[layout.start]) == len(offsets) * values.images:
            yield replace(layout, windows=len(offsets)), replace(heads, offsets=offsets)


def _holds(layout: HeadLayout, heads: Heads, block: nn.Module, values: Values) -> bool:
    """Whether a layout with offsets, or a causal one, is right for every number of tokens.

    Offsets are right if the branch rejects fewer tokens. A causal mask is right if longer inputs
    agree with it, because the branch may limit how far tokens look back.
    """
    if not (layout.windows or layout.causal):
        return True
    # If a node between reads sizes of the block's input, run from the block's entry instead.
    start = layout.start if values.reads_only(layout.start, layout.end) else values.entry
    x = values[start][:1] if layout.causal else values[start]
    if layout.windows:
        return _try(values, start, layout.end, x[:, 1:]) is None
    for times in (2, 4, 8):
        longer = x.repeat(1, times, *[1] * (x.ndim - 2))
        if not is_small(1, heads.count, longer.shape[1]):
            break
        wanted = _try(values, start, layout.end, longer)
        tokens = _try(values, start, layout.start, longer)
        if wanted is None or tokens is None:
            break
        if not _same(heads.attend(_normed(layout, block, tokens)), wanted):
            return False
    return True


def _try(values: Values, start: str, end: str, x: Tensor) -> Any:
    """Value of node `end` for the value `x` of `start`; None if the branch cannot run on it."""
    if start == end:
        return x
    try:
        return values.call(start, end, x)
    except UserCodeError:
        return None


def _computes(layout: HeadLayout, heads: Heads, block: nn.Module, values: Values) -> bool:
    """Whether the matrices compute the block's output; False if `out` is zero, as any would."""
    tokens, wanted = _tokens(layout, block, values), values[layout.end]
    # A few tokens are compared first, because most ways to read the layers are wrong.
    few = _same(heads.attend(tokens, _TRIED), wanted[:, :_TRIED])
    return few and _same(heads.attend(tokens), wanted) and bool(heads.out.any())


def _of_layers(calls: Calls, values: Values) -> Iterator[HeadLayout]:
    """Every way in which linear layers of the branch may hold heads."""
    linear = [call for call in calls if isinstance(call.module, nn.Linear) and call.x.ndim == 3]
    for place, out in enumerate(linear):
        if not (end := values.find(out.y)):
            continue
        for readers in _readers(linear[:place], out):
            tokens, names = readers[0].x, tuple(reader.name for reader in readers)
            norms = [call for call in calls if equal(call.y, tokens)]
            for name, x in [("", tokens), *((norm.name, norm.x) for norm in norms)]:
                if start := values.find(x, before=end):
                    layout = HeadLayout(start, end, name, names, out.name, 1)
                    yield from _ways(layout, out.x.shape[-1])
                    break


def _readers(linear: Calls, out: LayerCall[nn.Module]) -> Iterator[Calls]:
    """One or three layers that read the same tokens, and have three rows for a column of `out`."""
    width, left = out.x.shape[-1], linear
    while left:
        same = [call for call in left if equal(call.x, left[0].x)]
        left = [call for call in left if not equal(call.x, left[0].x)]
        if [call.y.shape[-1] for call in same] in ([3 * width], [width] * 3):
            yield same


def _ways(layout: HeadLayout, width: int) -> Iterator[HeadLayout]:
    """Every way in which layers may hold heads of `width` channels in total."""
    alone = len(layout.layers) == 1
    orders = [(0, 1, 2)] if alone else permutations((0, 1, 2))
    counts = [n for n in range(1, width + 1) if width % n == 0]
    for heads, (q, k, v), by_head, scaled in product(
        counts, orders, [False, True][: 1 + alone], [True, False]
    ):
        yield replace(layout, heads=heads, order=(q, k, v), by_head=by_head, is_scaled=scaled)


def _of_torch(calls: Calls, graph: fx.Graph, values: Values) -> Iterator[HeadLayout]:
    """The layout of torch's own attention, where it attends to its input."""
    for name, module in ((call.name, call.module) for call in calls):
        nodes = [n for n in graph.nodes if n.op == "call_module" and n.target == name]
        if not isinstance(module, nn.MultiheadAttention) or len(nodes) != 1:
            continue
        if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
            continue
        named = (nodes[0].kwargs.get(key) for key in ("query", "key", "value"))
        given = [s for s in (*nodes[0].args, *named) if isinstance(s, fx.Node)][:3]
        ends = [n.name for n in nodes[0].users if n.args[1:] == (0,) and n.name in values]
        if len({*given}) == 1 and ends and module.batch_first:
            out = f"{name}.out_proj"
            yield HeadLayout(given[0].name, ends[0], "", (name,), out, module.num_heads)


def _layers(block: nn.Module) -> dict[str, nn.Module]:
    """Modules without children, and torch's attention, by name."""
    return {
        name: module
        for name, module in block.named_modules()
        if isinstance(module, nn.MultiheadAttention) or not any(True for _ in module.children())
    }


def _matrix(module: nn.Module) -> Tensor:
    """Weight and bias (O, I + 1) of a linear layer, or of the input layers of torch's attention."""
    names = ("in_proj_weight", "in_proj_bias")
    if not isinstance(module, nn.MultiheadAttention):
        names = ("weight", "bias")
    weight, bias = (getattr(module, name) for name in names)
    column = weight.new_zeros(len(weight), 1) if bias is None else bias[:, None]
    return torch.cat([weight, column], 1)


def _same(a: Tensor, b: Any) -> bool:
    """Whether `a` from the matrices equals the branch's value `b`, in the precision of `b`."""
    same = isinstance(b, Tensor) and a.shape == b.shape
    tolerance = FLOAT32.tolerance if same and b.dtype == torch.float32 else FLOAT64.tolerance
    return same and bool((a - b).norm() <= tolerance * b.norm())
