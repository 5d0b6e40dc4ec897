"""Graph surgery on one block: take a part of it out, or put something else in its place."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from updp.blocks.tracing.region import Region

# Given the graph, the tensor at the region's entry and the one at the end of its skip (the entry
# itself for an identity), add nodes and return the one that replaces the region's exit.
Emit = Callable[[fx.Graph, fx.Node, fx.Node], fx.Node]


@dataclass(frozen=True)
class Replacement:
    """A region, what to emit in its place, and the modules and tensors that this needs by name."""

    region: Region
    emit: Emit
    added: Mapping[str, object]


def extract(
    block: nn.Module, graph: fx.Graph, entry: str, end: str, extras: Sequence[str] = ()
) -> fx.GraphModule:
    """The part of `graph` that computes node `end` from node `entry`; modules are shared.

    Its arguments are the value of `entry`, then those of the nodes `extras`.
    """
    nodes = {n.name: n for n in graph.nodes}
    return _extract(block, [nodes[name] for name in (entry, *extras)], nodes[end], {})


def substitute(
    block: nn.Module, graph: fx.Graph, region: Region, modules: Mapping[str, nn.Module]
) -> fx.GraphModule:
    """A region as `extract` gives it, with other modules for some of its targets."""
    nodes = {n.name: n for n in graph.nodes}
    inputs = [nodes[name] for name in (region.entry, *region.extras)]
    return _extract(block, inputs, nodes[region.exit], modules)


def isolate(block: nn.Module, graph: fx.Graph, replacement: Replacement) -> fx.GraphModule:
    """What stands in a region's place, alone: a module from its entry (and extras) to its exit."""
    emitted = _emit(graph, [replacement])
    region, nodes = replacement.region, emitted.nodes
    inputs = [nodes[name] for name in (region.entry, *region.extras)]
    return _extract(block, inputs, nodes[region.exit], emitted.added)


def replace_regions(
    block: nn.Module, graph: fx.Graph, replacements: Sequence[Replacement]
) -> fx.GraphModule:
    """The block with each region replaced, as a module with the block's own signature.

    Every module that stays is the block's own object under its own name.
    """
    emitted = _emit(graph, replacements)
    for node in reversed(emitted.graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            emitted.graph.erase_node(node)
    return _module(block, emitted.graph, emitted.added)


@dataclass
class _Emitted:
    graph: fx.Graph
    nodes: dict[str, fx.Node]  # by their old names; an exit is what replaced it
    added: dict[str, object]


def _emit(graph: fx.Graph, replacements: Sequence[Replacement]) -> _Emitted:
    """A copy of the graph in which each region's exit is replaced; old nodes are still there."""
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
        nodes[region.exit] = new  # the next region may start here
        added |= item.added
    return _Emitted(graph, nodes, added)


def _extract(
    block: nn.Module, inputs: Sequence[fx.Node], end: fx.Node, added: Mapping[str, object]
) -> fx.GraphModule:
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
    root: dict[str, object] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and node.target in added:
            root[node.target] = added[node.target]
        elif node.op in ("call_module", "get_attr"):
            value: object = block
            for part in node.target.split("."):
                value = getattr(value, part)
            root[node.target] = value
    module = fx.GraphModule(root, graph, class_name=type(block).__name__)
    module.training = block.training
    return module
