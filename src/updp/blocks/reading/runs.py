"""Chains outside residual branches: runs of a module's own graph, cut into pieces of block size."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from updp.blocks.reading.chain import NotAChain, read_chain
from updp.blocks.reading.steps import Chain, NormStep
from updp.blocks.tracing.region import Region, data_nodes, runs

# Operators that mix channels in one piece: two, so that one of them can go; more, up to a
# bottleneck and a little, where a module of the user's own is such a chain.
_PIECE, _MODULE = 2, 4


@dataclass(frozen=True)
class _Part:
    """A node that is a chain by itself."""

    node: fx.Node
    chain: Chain

    @property
    def mixing(self) -> int:
        """Operators that mix channels."""
        return sum(not step.depthwise for step in self.chain.linears)


def plain_regions(
    module: nn.Module,
    graph: fx.Graph,
    values: Mapping[str, Any],
    taken: Callable[[fx.Node], bool],
) -> list[Region]:
    """Regions without a skip in which operators can merge; nodes that are `taken` are left out.

    A run is cut where a child has a piece of its own, and else after every second operator that
    mixes channels. Vectors (N, C) are left alone: they are a classifier's head or a gate's.
    """
    found = []
    for run in runs(graph):
        parts: list[_Part] = []
        for node in [*run, None]:
            part = None if node is None or taken(node) else _read(module, graph, node, values)
            if part is not None:
                parts.append(part)
                continue
            found += [_region(piece) for piece in _pieces(parts, graph)]
            parts = []
    return found


def _read(
    module: nn.Module, graph: fx.Graph, node: fx.Node, values: Mapping[str, Any]
) -> _Part | None:
    data = data_nodes(graph)
    (source,) = [p for p in node.all_input_nodes if p in data]
    x = values[source.name]
    if not isinstance(x, Tensor) or x.ndim < 3 or _is_vector(x):
        return None
    try:
        return _Part(node, read_chain(module, graph, [node.name], x))
    except NotAChain:
        return None


def _is_vector(x: Tensor) -> bool:
    """Whether a map is of one pixel, channels first or last."""
    return x.ndim == 4 and 1 in (x.shape[2] * x.shape[3], x.shape[1] * x.shape[2])


def _pieces(parts: list[_Part], graph: fx.Graph) -> list[list[_Part]]:
    """Cut readable parts in a row into pieces in which something can merge."""
    own = [part for part in parts if part.mixing >= _PIECE]
    holding = [part for part in parts if part.chain.linears]
    if own:
        whole = len(parts) == len(data_nodes(graph)) - 2  # all but its input and output
        if len(holding) == 1 and whole and own[0].mixing <= _MODULE:
            return [parts]
        at = parts.index(own[0])  # it has pieces of its own
        return [*_pieces(parts[:at], graph), *_pieces(parts[at + 1 :], graph)]
    pieces: list[list[_Part]] = [[]]
    mixing = 0
    for part in parts:
        if mixing >= _PIECE and part.chain.linears:
            pieces.append([])
            mixing = 0
        mixing += part.mixing
        pieces[-1].append(part)
    return [_trimmed(p) for p in pieces if sum(part.mixing for part in p) >= _PIECE]


def _trimmed(piece: list[_Part]) -> list[_Part]:
    """Without what precedes the first operator, unless a norm is there (pre-activation)."""
    first = next(i for i, part in enumerate(piece) if part.chain.linears)
    normed = any(isinstance(s, NormStep) for part in piece[:first] for s in part.chain.steps)
    return piece if normed else piece[first:]


def _region(piece: list[_Part]) -> Region:
    names = tuple(part.node.name for part in piece)
    data = data_nodes(piece[0].node.graph)
    (source,) = [p for p in piece[0].node.all_input_nodes if p in data]
    return Region(source.name, names, (), None, names[-1])
