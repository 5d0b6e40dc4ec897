"""In-place statements as values: later nodes read what an overwriting node returns.

A graph is cut into parts by who reads whom. A statement such as `y.relu_()` or `x[:, :2] += y`
works by its order instead, and would be lost.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from updp.blocks.tracing.interpret import NotTraceable


@dataclass
class Notes:
    """What is seen of each node of a graph as it is traced on a real call.

    values:       computed; absent where an input's is not known
    overwritten:  inputs whose tensor's new value the node returns
    spoiled:      inputs whose tensor it changed without returning it
    valued:       nodes that depend on what a tensor holds, not on its size alone
    """

    values: dict[fx.Node, Any] = field(default_factory=dict)
    overwritten: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    spoiled: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    valued: set[fx.Node] = field(default_factory=set)


def follow_overwrites(graph: fx.Graph, notes: Notes) -> None:
    """Let the users of each overwritten tensor read the node that overwrote it, in place.

    Args:
        graph: as traced, in the order of its statements; assignments to a part of a tensor are
            calls of `operator.setitem`.
        notes: what was seen as it was traced.

    Raises:
        NotTraceable: a tensor is read after another one that shares its memory was overwritten.
    """
    now: dict[fx.Node, fx.Node] = {}  # what holds the present value of a node's tensor
    lost: dict[fx.Node, fx.Node] = {}
    seen: list[fx.Node] = []
    for node in list(graph.nodes):
        for old in node.all_input_nodes:
            if old in lost:
                raise NotTraceable(f"it reads `{old.name}`, which `{lost[old].name}` overwrites")
            node.replace_input_with(old, now.get(old, old))
        for base in notes.overwritten.get(node, ()):
            new, held, value = node, now.get(base), notes.values[base]
            if node.target is operator.setitem:
                whole, index, part = node.args
                new = _assigned(graph, node, whole, index, part, notes)
                graph.erase_node(node)
                seen.append(new)
            for other in seen:
                x = notes.values.get(other)
                if other in (base, held) or (held and now.get(other) is held) or are_one(x, value):
                    now[other] = new
                elif share_memory(x, value) and not _is_assigned_back(base, new, other):
                    if base.target is operator.getitem and base.args[0] is other:
                        last = node.next
                        now[other] = _assigned(graph, last, other, base.args[1], new, notes)
                    else:
                        lost[other] = new
        for base in notes.spoiled.get(node, ()):
            lost |= {n: node for n in seen if share_memory(notes.values.get(n), notes.values[base])}
        seen.append(node)


def _is_assigned_back(base: fx.Node, new: fx.Node, whole: fx.Node) -> bool:
    """Whether `base` is a part `whole[i]`, and the statement goes on with `whole[i] = new`."""
    return base.target is operator.getitem and any(
        user.target is operator.setitem and user.args == (whole, base.args[1], new)
        for user in new.users
    )


def are_one(x: Any, y: Any) -> bool:
    """Whether two values are tensors of the same elements in the same memory."""
    return share_memory(x, y) and _place(x) == _place(y)


def share_memory(x: Any, y: Any) -> bool:
    """Whether two values are tensors in the same memory."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return False
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() != 0


def _place(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.storage_offset(), x.shape, x.stride()


def _assigned(
    graph: fx.Graph, before: fx.Node, whole: Any, index: Any, value: Any, notes: Notes
) -> fx.Node:
    """The statement `whole[index] = value` as calls that return the whole, put in `before`.

    Raises:
        NotTraceable: the index is not made of numbers and slices, nor one mask or tensor.
    """
    x = notes.values[whole]
    with graph.inserting_before(before):
        if isinstance(index, fx.Node) and isinstance(notes.values.get(index), Tensor):
            if not isinstance(notes.values.get(value, value), Tensor):
                new = graph.call_method("masked_fill", (whole, index, value))
            else:
                new = graph.call_method("index_put", (whole, (index,), value))
            notes.values[new] = x
            return new
        entries = list(index) if isinstance(index, (tuple, list)) else [index]
        if ... in entries:
            at = entries.index(...)
            entries[at : at + 1] = [slice(None)] * (x.ndim - len(entries) + 1)
        for entry in entries:
            number = notes.values.get(entry, entry) if isinstance(entry, fx.Node) else entry
            if not isinstance(number, (int, slice)) or isinstance(number, bool):
                raise NotTraceable("it assigns to a part that is given by more than slices")
        tensor = isinstance(value, fx.Node) and isinstance(notes.values.get(value, x), Tensor)
        new = _scattered(graph, whole, 0, entries, value, tensor)
    notes.values[new] = x  # which holds the new value as well, for it was overwritten in place
    return new


def _scattered(
    graph: fx.Graph, whole: fx.Node, dim: int, entries: Sequence[Any], value: Any, tensor: bool
) -> fx.Node:
    """`whole` with `value`, a tensor or a number, at `entries` of its axes from `dim` on."""
    while entries and entries[0] == slice(None):
        dim, entries = dim + 1, entries[1:]
    if not entries:
        if not tensor:
            return graph.call_function(torch.full_like, (whole, value))
        sized = graph.call_method("expand_as", (value, whole))
        return graph.call_method("type_as", (sized, whole))
    entry, rest = entries[0], entries[1:]
    part = graph.call_function(operator.getitem, (whole, (slice(None),) * dim + (entry,)))
    if isinstance(entry, slice):
        inner = _scattered(graph, part, dim + 1, rest, value, tensor)
        bounds = (entry.start, entry.stop, 1 if entry.step is None else entry.step)
        return graph.call_function(torch.slice_scatter, (whole, inner, dim, *bounds))
    inner = _scattered(graph, part, dim, rest, value, tensor)
    return graph.call_function(torch.select_scatter, (whole, inner, dim, entry))
