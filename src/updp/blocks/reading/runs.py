"""Find chains outside residual branches: straight runs of a graph, cut into pieces."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from updp.blocks.reading.chain import read_chain
from updp.blocks.reading.cursor import NotAChain
from updp.blocks.reading.linear import LinearStep
from updp.blocks.reading.steps import Chain, NormStep
from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.region import Region, data_nodes, runs
from updp.blocks.values import tensors_of

# Number of channel-mixing operators in a piece: two, so that one of them can be merged away; up to
# four (a bottleneck has three) if the user's own module is one such chain.
_PIECE, _MODULE = 2, 4


@dataclass(frozen=True)
class _Part:
    """A node, read by itself as a chain."""

    node: fx.Node
    chain: Chain

    @property
    def mixing(self) -> int:
        """Number of operators that mix channels: all except depthwise convolutions."""
        return sum(not step.depthwise for step in self.chain.linears)

    @property
    def shows_layout(self) -> bool:
        """Whether the part works in one layout only; an activation works in any."""
        permutes = self.chain.layout_in != self.chain.layout_out
        return permutes or any(isinstance(s, (LinearStep, NormStep)) for s in self.chain.steps)


def plain_regions(
    module: nn.Module,
    graph: fx.Graph,
    values: Mapping[str, Any],
    taken: Callable[[fx.Node], bool],
    vectors: bool = False,
) -> list[Region]:
    """Find regions without a skip in which operators can merge.

    A run is cut around children that contain a piece of their own, and elsewhere after every
    second operator that mixes channels. Vectors (N, C) are left out: they belong to a head or gate.

    Args:
        values: value of each node by name, in a real call.
        taken: whether a site or a residual block already uses a node.
        vectors: whether the model has only vectors, so that they are not just a head.
    """
    found = []
    for run in runs(graph):
        parts: list[_Part] = []
        for node in [*run, None]:
            part = (
                None if node is None or taken(node) else _read(module, graph, node, values, vectors)
            )
            if part is not None and _fits(parts, part):
                parts.append(part)
                continue
            found += [_region(piece) for piece in _pieces(parts, graph)]
            parts = [] if part is None else [part]
    return found


def has_vectors_only(model: nn.Module, calls: Mapping[str, Sequence[Arguments]]) -> bool:
    """Whether a model takes vectors (N, C) and makes neither maps nor tokens from them."""
    if any(isinstance(module, _ConvNd) for module in model.modules()):
        return False
    given = [t for each in calls.values() for call in each for t in tensors_of(vars(call))]
    return bool(given) and all(t.ndim == 2 and t.is_floating_point() for t in given)


def why_no_chain(traced: Iterable[tuple[nn.Module, fx.Graph, Mapping[str, Any]]]) -> str:
    """Reason why a model has no residual branch and no chain, from its modules and values."""
    found = set()
    for module, graph, values in traced:
        for run in runs(graph):
            others = [node for node in run if _read(module, graph, node, values) is None]
            on_vectors = (_read(module, graph, node, values, vectors=True) for node in others)
            if sum(part.mixing for part in on_vectors if part is not None) >= _PIECE:
                found.add("its chains are on vectors (N, C), which are taken for heads")
            called = [module.get_submodule(str(n.target)) for n in run if n.op == "call_module"]
            if sum(isinstance(child, _ConvTransposeNd) for child in called) >= _PIECE:
                found.add("its chains are of transposed convolutions, whose output grid is finer")
    return ", and ".join(sorted(found)) or "nothing in it adds a branch to its input, or is a chain"


def _read(
    module: nn.Module,
    graph: fx.Graph,
    node: fx.Node,
    values: Mapping[str, Any],
    vectors: bool = False,
) -> _Part | None:
    """Read a node as a chain; None if that fails, or if its input is a vector or no tensor."""
    data = data_nodes(graph)
    (source,) = [p for p in node.all_input_nodes if p in data]
    x = values[source.name]
    if not isinstance(x, Tensor) or x.ndim < 2 or (_is_vector(x) and not vectors):
        return None
    try:
        return _Part(node, read_chain(module, graph, [node.name], x))
    except NotAChain:
        return None


def _fits(parts: list[_Part], part: _Part) -> bool:
    """Whether a part reads the layout that the parts before it return."""
    shown = [p for p in parts if p.shows_layout]
    return not (shown and part.shows_layout) or shown[-1].chain.layout_out == part.chain.layout_in


def _is_vector(x: Tensor) -> bool:
    """Whether a tensor is (N, C), or a map of a single pixel, in either layout."""
    return x.shape[2:].numel() == 1 or (x.ndim > 3 and x.shape[1:-1].numel() == 1)


def _pieces(parts: list[_Part], graph: fx.Graph) -> list[list[_Part]]:
    """Cut consecutive parts into pieces in which operators can merge."""
    own = [part for part in parts if part.mixing >= _PIECE]
    holding = [part for part in parts if part.chain.linears]
    if own:
        whole = len(parts) == len(data_nodes(graph)) - 2  # all nodes but input and output
        if len(holding) == 1 and whole and own[0].mixing <= _MODULE:
            return [parts]
        at = parts.index(own[0])  # cut around it: `find` looks for pieces inside the child
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
    """Remove the parts before the first operator, unless they hold a norm (pre-activation)."""
    first = next(i for i, part in enumerate(piece) if part.chain.linears)
    normed = any(isinstance(s, NormStep) for part in piece[:first] for s in part.chain.steps)
    return piece if normed else piece[first:]


def _region(piece: list[_Part]) -> Region:
    names = tuple(part.node.name for part in piece)
    data = data_nodes(piece[0].node.graph)
    (source,) = [p for p in piece[0].node.all_input_nodes if p in data]
    return Region(source.name, names, (), None, names[-1])
