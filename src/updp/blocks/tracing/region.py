"""Regions of an fx graph: residual branches with their add, and plain paths without one."""

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from updp.blocks.tracing.node_values import NoValues, Values

_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_MULS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_DIVS = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
_OF_SIZE = {"shape", "ndim", "dtype", "device", "size", "dim", "numel", "stride", "element_size"}


@dataclass(frozen=True)
class Region:
    """A single-entry, single-exit part of a block's graph, by node names.

    entry:    the node whose value enters; it is not part of the region
    branch:   nodes of the branch in order; without a residual add they end at `exit`
    skip:     nodes of the skip in order; empty for the identity
    add:      the residual add, or None
    exit:     the last node
    extras:   other nodes outside whose values the branch reads: a mask, a size
    tail:     nodes behind the add, up to the exit
    """

    entry: str
    branch: tuple[str, ...]
    skip: tuple[str, ...]
    add: str | None
    exit: str
    extras: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()

    @property
    def inside(self) -> frozenset[str]:
        """All nodes of the region, without its entry."""
        return frozenset((*self.branch, *self.skip, self.add or self.exit, *self.tail))


def is_add(node: fx.Node) -> bool:
    """Whether the node adds two tensors."""
    return _is_one_of(_ADDS, node)


def is_mul(node: fx.Node) -> bool:
    """Whether the node multiplies two values."""
    return _is_one_of(_MULS, node)


def is_div(node: fx.Node) -> bool:
    """Whether the node divides a value by another."""
    return _is_one_of(_DIVS, node)


def _is_one_of(targets: Collection[Any], node: fx.Node) -> bool:
    """Whether the node calls one of these functions and methods; a child may have such a name."""
    return node.op in ("call_function", "call_method") and node.target in targets


def data_nodes(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Nodes that depend on a placeholder, each with its ancestors of this kind and itself."""
    ancestors: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            ancestors[node] = {node}
        elif parents := [p for p in node.all_input_nodes if p in ancestors]:
            ancestors[node] = {node}.union(*(ancestors[p] for p in parents))
    return ancestors


def _tensor_ancestors(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Like `data_nodes`, but only through values: nodes that read just a size are left out."""
    ancestors: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            ancestors[node] = {node}
        elif not is_size(node) and (ps := [p for p in node.all_input_nodes if p in ancestors]):
            ancestors[node] = {node}.union(*(ancestors[p] for p in ps))
    return ancestors


def is_size(node: fx.Node) -> bool:
    """Whether a node reads the size of a tensor, or another of its properties but its values."""
    if node.op == "call_method":
        return node.target in _OF_SIZE
    return node.target is len or (node.target is getattr and node.args[1] in _OF_SIZE)


def residual_adds(
    graph: fx.Graph, operators: Callable[[str], int] = lambda target: 1
) -> list[tuple[Region, str]]:
    """Find all adds of two paths from one tensor, in graph order, each as the end of a region.

    Each comes with the reason why it is not a region, empty if it is. `operators` counts the linear
    operators of a module by its path in the block: the path with more of them is the branch, and
    the identity never is. An add whose paths do not fork from one tensor, such as a position
    embedding, is not listed.
    """
    ancestors, by_value = data_nodes(graph), _tensor_ancestors(graph)
    at = {node: i for i, node in enumerate(graph.nodes)}.__getitem__
    found = []

    def weight(path: list[fx.Node]) -> tuple[int, int, bool]:
        modules = [str(n.target) for n in path if n.op == "call_module"]
        # A path of functions alone, such as `torch.tanh(x)`, calls no module either.
        return sum(map(operators, modules)), len(modules), bool(path)

    for add in graph.nodes:
        if not is_add(add):
            continue
        named = [add.kwargs[key] for key in ("input", "other") if key in add.kwargs]
        left, right = (*add.args, *named)[:2]
        if left not in by_value or right not in by_value or left is right:
            continue
        common = by_value[left] & by_value[right]
        if not common:
            continue
        fork = max(common, key=at)
        paths = [
            sorted((n for n in ancestors[end] if fork in ancestors[n] and n is not fork), key=at)
            for end in (left, right)
        ]
        paths.sort(key=weight)
        shared = _shared_sizes({*paths[0], *paths[1], add}, ancestors, by_value)
        skip, branch = ([n for n in path if n not in shared] for path in paths)
        why = ""
        if set(skip) & set(branch):
            why = "its two paths meet before they are added"
        elif leaving := _leaving([*skip, *branch], add):
            why = f"what `{leaving}` makes is read outside of it, too"
        elif _outer(skip, fork, ancestors):
            why = "its skip reads another value"
        region = Region(
            fork.name,
            tuple(n.name for n in branch),
            tuple(n.name for n in skip),
            add.name,
            add.name,
            tuple(n.name for n in sorted(_outer(branch, fork, ancestors), key=at)),
        )
        found.append((region, why))
    return found


def whole_region(graph: fx.Graph, *, sizes: bool = False) -> Region | None:
    """The region from the first input to the output, if it has no other input or output.

    With `sizes` it may have further inputs, which are its extras.
    """
    ancestors = data_nodes(graph)
    entry = next((n for n in graph.nodes if n.op == "placeholder"), None)
    output = next(n for n in graph.nodes if n.op == "output")
    last = output.args[0]
    if entry is None or not isinstance(last, fx.Node) or entry not in ancestors.get(last, ()):
        return None
    inside = [n for n in graph.nodes if n in ancestors[last] and n is not entry]
    extras = tuple(n.name for n in inside if n.op == "placeholder")
    if extras and not sizes:
        return None
    branch = tuple(n.name for n in inside if n.op != "placeholder")
    return Region(entry.name, branch, (), None, last.name, extras)


def groups(graph: fx.Graph, path: Sequence[str]) -> list[list[fx.Node]]:
    """Cut a path into its smallest single-entry, single-exit groups; most are single nodes."""
    at = {name: i for i, name in enumerate(path)}
    nodes = [n for n in graph.nodes if n.name in at]
    found: list[list[fx.Node]] = [[]]
    reach = 0  # index of the last node that uses a value from before the current node
    for i, node in enumerate(nodes):
        found[-1].append(node)
        earlier = [n for n in (*found[-1][:-1], *_entries(nodes[0], found)) if n is not node]
        reach = max([reach, *(at.get(u.name, 0) for n in earlier for u in n.users)])
        if reach <= i:
            found.append([])
    return [group for group in found if group]


def _entries(first: fx.Node, found: list[list[fx.Node]]) -> list[fx.Node]:
    """Inputs of the last group: the exit of the group before it, or the inputs of the path."""
    if len(found) > 1:
        return [found[-2][-1]]
    return list(first.all_input_nodes)


def runs(graph: fx.Graph) -> list[list[fx.Node]]:
    """Maximal straight runs of nodes: each reads only the node before it and is its only user."""
    data = data_nodes(graph)
    found: list[list[fx.Node]] = []
    ends: dict[fx.Node, list[fx.Node]] = {}  # the run that each node belongs to
    for node in graph.nodes:
        inputs = [p for p in node.all_input_nodes if p in data]
        if node.op in ("placeholder", "output") or len(inputs) != 1:
            continue
        (source,) = inputs
        if source in ends and len(source.users) == 1:
            ends[node] = ends[source]
        else:
            ends[node] = []
            found.append(ends[node])
        ends[node].append(node)
    return found


def _shared_sizes(
    inside: Collection[fx.Node],
    ancestors: Mapping[fx.Node, Collection[fx.Node]],
    by_value: Mapping[fx.Node, object],
) -> set[fx.Node]:
    """Sizes of the fork, and what is made of them, that are also read outside of a region.

    They do not need what the region computes, so they are given to it from outside.
    """
    maybe = (n for n in inside if n not in by_value)
    sizes = {n for n in maybe if not any(p in inside and p in by_value for p in ancestors[n])}
    read = (n for n in sizes if any(user not in inside for user in n.users))
    return {p for node in read for p in ancestors[node] if p in sizes}


def _leaving(inside: Sequence[fx.Node], add: fx.Node) -> str:
    """Name of a node whose value is used outside of the region and its add; empty if none."""
    for node in inside:
        if any(user not in inside and user is not add for user in node.users):
            return node.name
    return ""


def _outer(
    path: Sequence[fx.Node], fork: fx.Node, ancestors: Mapping[fx.Node, object]
) -> set[fx.Node]:
    """Data nodes outside a path that it reads, except the fork."""
    return {
        p
        for node in path
        for p in node.all_input_nodes
        if p in ancestors and p not in path and p is not fork
    }


def joins_maps(region: Region, values: Values | NoValues, *, vectors: bool = True) -> bool:
    """Whether a region's ends are floating-point tensors; a model adds sizes and indices, too.

    Without `vectors`, (N, C), they must be maps or tokens.
    """
    if isinstance(values, NoValues):
        return True
    ends = [values[0][name] for name in (region.entry, *region.branch[-1:])]
    of_numbers = (isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) for x in ends)
    return all(of_numbers) and (vectors or ends[0].ndim > 2)


def place_of(graph: fx.Graph, region: Region) -> int:
    """Position in the graph at which a region ends, to order the sites of a block."""
    return next(i for i, node in enumerate(graph.nodes) if node.name == region.exit)
