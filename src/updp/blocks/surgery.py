"""Graph surgery on one block: extract a subgraph as a module, or replace regions of it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from torch import fx, nn

from updp.blocks.tracing.region import Region

# Function of a graph, the node at a region's entry and the last node of its skip (the entry again
# for an identity): adds nodes to the graph and returns the one that replaces the region's exit.
Emit = Callable[[fx.Graph, fx.Node, fx.Node], fx.Node]


@dataclass(frozen=True)
class Replacement:
    """A region and what replaces it: `added` are the modules and tensors of `emit`'s nodes."""

    region: Region
    emit: Emit
    added: Mapping[str, object]


def extract(
    block: nn.Module, graph: fx.Graph, entry: str, end: str, extras: Sequence[str] = ()
) -> fx.GraphModule:
    """Extract the subgraph that computes node `end` as a module; it shares the block's modules.

    Its arguments are the value of node `entry`, then those of the nodes `extras`.
    """
    nodes = {n.name: n for n in graph.nodes}
    return _extract(block, [nodes[name] for name in (entry, *extras)], nodes[end], {})


def substitute(
    block: nn.Module, graph: fx.Graph, region: Region, modules: Mapping[str, nn.Module]
) -> fx.GraphModule:
    """Extract a region from entry to exit, with `modules` in place of its targets so named."""
    nodes = {n.name: n for n in graph.nodes}
    inputs = [nodes[name] for name in (region.entry, *region.extras)]
    return _extract(block, inputs, nodes[region.exit], modules)


def isolate(block: nn.Module, graph: fx.Graph, replacement: Replacement) -> fx.GraphModule:
    """Extract what replaces a region as a module of its own, from entry (and extras) to exit."""
    emitted = _emit(graph, [replacement])
    region, nodes = replacement.region, emitted.nodes
    inputs = [nodes[name] for name in (region.entry, *region.extras)]
    return _extract(block, inputs, nodes[region.exit], emitted.added)


def replace_regions(
    block: nn.Module, graph: fx.Graph, replacements: Sequence[Replacement]
) -> fx.GraphModule:
    """The block with all `replacements` made, as a module with the block's own signature.

    Modules that stay are the block's own objects under their own names.
    """
    emitted = _emit(graph, replacements)
    for node in reversed(emitted.graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            emitted.graph.erase_node(node)
    return _module(block, emitted.graph, emitted.added)


@dataclass
class _Emitted:
    graph: fx.Graph
    nodes: dict[str, fx.Node]  # by name in the old graph; a region's exit maps to its substitute
    added: dict[str, object]


def _emit(graph: fx.Graph, replacements: Sequence[Replacement]) -> _Emitted:
    """Replace each region's exit in a copy of the graph; the old nodes stay, without users."""
    graph = copy.deepcopy(graph)
    nodes = {n.name: n for n in graph.nodes}
    added: dict[str, object] = {}
    for item in replacements:
        region = item.region
        old, entry = nodes[region.exit], nodes[region.entry]
        skip = nodes[region.skip[-1]] if region.skip else entry
        with graph.inserting_before(old.next):
            new = item.emit(graph, entry, skip)
        old.replace_all_uses_with(new)
        nodes[region.exit] = new  # it may be the entry of the next region
        added |= item.added
    return _Emitted(graph, nodes, added)


def _extract(
    block: nn.Module, inputs: Sequence[fx.Node], end: fx.Node, added: Mapping[str, object]
) -> fx.GraphModule:
    """A module of the nodes between `inputs`, its placeholders, and `end`, its output."""
    part = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for i, node in enumerate(inputs):
        copied[node] = part.placeholder(f"x{i or ''}")

    def copy_node(node: fx.Node) -> fx.Node:
        if node not in copied:
            for parent in node.all_input_nodes:
                copy_node(parent)
            copied[node] = part.node_copy(node, copied.__getitem__)
        return copied[node]

    part.output(copy_node(end))
    return _module(block, part, added)


def _module(block: nn.Module, graph: fx.Graph, added: Mapping[str, object]) -> fx.GraphModule:
    """A module of `graph`; targets are looked up in `added` first, then in `block`."""
    root: dict[str, object] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            own = node.target not in added
            root[node.target] = attrgetter(node.target)(block) if own else added[node.target]
    module = fx.GraphModule(root, graph, class_name=type(block).__name__)
    module.training = block.training
    module._tracer_cls = None  # a pickle would name our tracer, which fx cannot call
    return module
