"""Residual regions: what lies between a tensor and the add to which it returns."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

_ADDS = {operator.add, operator.iadd, torch.add}


@dataclass(frozen=True)
class Region:
    """A part of a block's graph with one entry and one exit, by node names.

    `branch` and `skip` are the nodes of the two paths in order (an empty skip is the identity).
    Without a residual add, `add` is None and `branch` ends at `exit`. `extras` are values from
    elsewhere that the branch needs beside its entry: a mask, a size.
    """

    entry: str
    branch: tuple[str, ...]
    skip: tuple[str, ...]
    add: str | None
    exit: str
    extras: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()  # from behind the add to the exit

    @property
    def inside(self) -> frozenset[str]:
        """Every node that it is made of; its entry is not."""
        return frozenset((*self.branch, *self.skip, self.add or self.exit, *self.tail))


def is_add(node: fx.Node) -> bool:
    """Whether the node adds two tensors."""
    return (node.op == "call_function" and node.target in _ADDS) or (
        node.op == "call_method" and node.target in ("add", "add_")
    )


def data_nodes(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Each node that depends on an input, with all of its ancestors that do, itself included."""
    ancestors: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            ancestors[node] = {node}
        elif parents := [p for p in node.all_input_nodes if p in ancestors]:
            ancestors[node] = {node}.union(*(ancestors[p] for p in parents))
    return ancestors


def residual_regions(
    graph: fx.Graph, operators: Callable[[str], int] = lambda target: 1
) -> list[Region]:
    """All single-entry regions that end in an add of two paths from one tensor, in graph order.

    The path with more `operators` is the branch: that function counts a module's. An add whose
    paths do not come from one tensor (a position embedding, say) is no residual add and not listed.
    """
    ancestors = data_nodes(graph)
    at = {node: i for i, node in enumerate(graph.nodes)}.__getitem__
    found = []

    def weight(path: list[fx.Node]) -> tuple[int, int]:
        modules = [str(n.target) for n in path if n.op == "call_module"]
        return sum(map(operators, modules)), len(modules)

    for add in graph.nodes:
        if not is_add(add):
            continue
        named = [add.kwargs[key] for key in ("input", "other") if key in add.kwargs]
        left, right = (*add.args, *named)[:2]
        if left not in ancestors or right not in ancestors or left is right:
            continue
        common = ancestors[left] & ancestors[right]
        if not common:
            continue
        fork = max(common, key=at)
        paths = [
            sorted((n for n in ancestors[end] if fork in ancestors[n] and n is not fork), key=at)
            for end in (left, right)
        ]
        if set(paths[0]) & set(paths[1]) or _leaks({*paths[0], *paths[1]}, add):
            continue
        paths.sort(key=weight)
        skip, branch = paths
        if _outer(skip, fork, ancestors):
            continue
        found.append(
            Region(
                fork.name,
                tuple(n.name for n in branch),
                tuple(n.name for n in skip),
                add.name,
                add.name,
                tuple(n.name for n in sorted(_outer(branch, fork, ancestors), key=at)),
            )
        )
    return found


def whole_region(graph: fx.Graph) -> Region | None:
    """The path from a block's first input to its output, if nothing else leaves or enters it."""
    ancestors = data_nodes(graph)
    entry = next(n for n in graph.nodes if n.op == "placeholder")
    output = next(n for n in graph.nodes if n.op == "output")
    last = output.args[0]
    if not isinstance(last, fx.Node) or last not in ancestors or entry not in ancestors[last]:
        return None
    branch = [n for n in graph.nodes if n in ancestors[last] and n is not entry]
    if any(n.op == "placeholder" for n in branch):
        return None
    return Region(entry.name, tuple(n.name for n in branch), (), None, last.name)


def groups(graph: fx.Graph, path: Sequence[str]) -> list[list[fx.Node]]:
    """Cut a path into parts with one value going in and one coming out; most are single nodes."""
    at = {name: i for i, name in enumerate(path)}
    nodes = [n for n in graph.nodes if n.name in at]
    found: list[list[fx.Node]] = [[]]
    reach = 0  # the last node that uses a value from before the present one
    for i, node in enumerate(nodes):
        found[-1].append(node)
        earlier = [n for n in (*found[-1][:-1], *_entries(nodes[0], found)) if n is not node]
        reach = max([reach, *(at.get(u.name, 0) for n in earlier for u in n.users)])
        if reach <= i:
            found.append([])
    return [group for group in found if group]


def _entries(first: fx.Node, found: list[list[fx.Node]]) -> list[fx.Node]:
    """What the last group starts from: the last node of the one before, or the path's entry."""
    if len(found) > 1:
        return [found[-2][-1]]
    return list(first.all_input_nodes)


def runs(graph: fx.Graph) -> list[list[fx.Node]]:
    """Paths of nodes in a row: each takes one value, the one before, which goes nowhere else."""
    data = data_nodes(graph)
    found: list[list[fx.Node]] = []
    ends: dict[fx.Node, list[fx.Node]] = {}
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


def _leaks(inside: set[fx.Node], add: fx.Node) -> bool:
    """Whether a value leaves the region elsewhere than at its add."""
    return any(user not in inside and user is not add for n in inside for user in n.users)


def _outer(
    path: Sequence[fx.Node], fork: fx.Node, ancestors: Mapping[fx.Node, object]
) -> set[fx.Node]:
    """Values that enter a path elsewhere than at its fork."""
    return {
        p
        for node in path
        for p in node.all_input_nodes
        if p in ancestors and p not in path and p is not fork
    }
