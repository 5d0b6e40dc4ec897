"""Residual regions: what lies between a tensor and the add to which it returns."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

_ADDS = {operator.add, operator.iadd, torch.add}


@dataclass(frozen=True)
class Region:
    """A part of a block's graph with one entry and one exit, by node names.

    `branch` and `skip` are the nodes of the two paths in order (an empty skip is the identity).
    Without a residual add, `add` is None and `branch` ends at `exit`.
    """

    entry: str
    branch: tuple[str, ...]
    skip: tuple[str, ...]
    add: str | None
    exit: str


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


def residual_regions(graph: fx.Graph) -> list[Region]:
    """All single-entry regions that end in an add of two paths from one tensor, in graph order.

    The path with more modules is the branch. An add whose paths do not come from one tensor (a
    position embedding, say) is no residual add and not listed.
    """
    ancestors = data_nodes(graph)
    order = {node: i for i, node in enumerate(graph.nodes)}
    found = []
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
        fork = max(common, key=order.__getitem__)
        paths = [
            sorted(
                (n for n in ancestors[end] - ancestors[fork] if n.op != "placeholder"),
                key=order.__getitem__,
            )
            for end in (left, right)
        ]
        inside = set(paths[0]) | set(paths[1])
        if set(paths[0]) & set(paths[1]) or _leaks(inside, fork, add, ancestors):
            continue
        paths.sort(key=lambda path: sum(n.op == "call_module" for n in path))
        skip, branch = ([n.name for n in path] for path in paths)
        found.append(Region(fork.name, tuple(branch), tuple(skip), add.name, add.name))
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
    return Region(entry.name, tuple(n.name for n in branch), (), None, last.name)


def _leaks(
    inside: set[fx.Node], fork: fx.Node, add: fx.Node, ancestors: dict[fx.Node, set[fx.Node]]
) -> bool:
    """Whether a value enters or leaves the region elsewhere than at its fork and its add.

    Further arguments of the block (an attention mask) may enter: such a branch is still residual.
    """
    return any(
        any(
            p in ancestors and p not in inside and p is not fork and p.op != "placeholder"
            for p in node.all_input_nodes
        )
        or any(user not in inside and user is not add for user in node.users)
        for node in inside
    )
