"""Turn in-place statements into values: later nodes read the output of the overwriting node.

A graph is cut into parts by which node reads which. A statement such as `y.relu_()` or
`x[:, :2] += y` acts through the order of statements instead, and would be lost.
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
    """Records of each node of a graph while it is traced on a real call.

    values:       computed values; missing if an input's value is not known
    overwritten:  inputs whose tensor was changed in place; the node returns the new value
    spoiled:      inputs whose tensor was changed in place, but is not returned
    valued:       nodes that depend on a tensor's values, not only on its size
    """

    values: dict[fx.Node, Any] = field(default_factory=dict)
    overwritten: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    spoiled: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    valued: set[fx.Node] = field(default_factory=set)


def follow_overwrites(graph: fx.Graph, notes: Notes) -> None:
    """Let the users of each overwritten tensor read the overwriting node; changes the graph.

    Args:
        graph: as traced, in the order of its statements; assignments to a part of a tensor are
            calls of `operator.setitem`.
        notes: records of the trace.

    Raises:
        NotTraceable: a tensor is read after a tensor that shares its memory was overwritten.
    """
    newest = _Newest(graph, notes)
    for node in list(graph.nodes):
        newest.read(node)
        for base in notes.overwritten.get(node, ()):
            newest.overwrite(base, node)
        for base in notes.spoiled.get(node, ()):
            newest.lose(notes.values[base], node)
        newest.seen.append(node)


class _Newest:
    """Tracks which node holds the current value of each tensor, while one follows a graph.

    now:   current node, by the nodes that held the tensor before
    lost:  nodes whose tensor was partly overwritten, with the node that did it
    seen:  nodes so far
    """

    def __init__(self, graph: fx.Graph, notes: Notes) -> None:
        self._graph, self._notes = graph, notes
        self.now: dict[fx.Node, fx.Node] = {}
        self.lost: dict[fx.Node, fx.Node] = {}
        self.seen: list[fx.Node] = []

    def read(self, node: fx.Node) -> None:
        """Let a node read the current values of its inputs."""
        for old in node.all_input_nodes:
            if old in self.lost:
                by = self.lost[old].name
                raise NotTraceable(f"it reads `{old.name}`, which `{by}` overwrites in part")
            node.replace_input_with(old, self.now.get(old, old))

    def overwrite(self, base: fx.Node, node: fx.Node) -> None:
        """Record that `node` overwrote the tensor of `base`, with the effect on other nodes."""
        value, new, part = self._notes.values[base], node, None
        whole = base.args[0] if base.target is operator.getitem else None
        if node.target is operator.setitem:
            new = _assigned(self._graph, node, *node.args, notes=self._notes)
            self._graph.erase_node(node)
            self.seen.append(new)
        elif self._is_view(whole, value) and not self._goes_on(whole, base, new):
            index = base.args[1]
            part = _assigned(self._graph, node.next, whole, index, new, notes=self._notes)
        held = self.now.get(base, base)
        for other in [*self.seen]:
            x, holds = self._notes.values.get(other), self.now.get(other, other)
            if holds is held or are_one(x, value):
                self.now[other] = new
            elif part is not None and holds is whole:
                self.now[other] = part
            elif share_memory(x, value) and not (part is None and holds is whole):
                self.lost[other] = new

    def lose(self, value: Tensor, node: fx.Node) -> None:
        """Record that `node` changed a tensor without returning it."""
        for other in self.seen:
            if share_memory(self._notes.values.get(other), value):
                self.lost[other] = node

    def _is_view(self, whole: Any, value: Tensor) -> bool:
        return whole is not None and share_memory(self._notes.values.get(whole), value)

    def _goes_on(self, whole: Any, part: fx.Node, new: fx.Node) -> bool:
        """Whether the next statement assigns `new` to `whole[i]`, from which `part` was taken."""
        for user in new.users:
            if user.target is operator.setitem and user.args[1:] == (part.args[1], new):
                target: Any = user.args[0]
                return self.now.get(target, target) is whole
        return False


def version_of(value: Any) -> int:
    """How often a tensor was changed in place."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def are_one(x: Any, y: Any) -> bool:
    """Whether two values are tensors with the same elements in the same memory."""
    return share_memory(x, y) and _place(x) == _place(y)


def share_memory(x: Any, y: Any) -> bool:
    """Whether two values are tensors in the same memory."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return False
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() != 0


def _place(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.storage_offset(), x.shape, x.stride()


def _assigned(
    graph: fx.Graph, before: fx.Node, whole: Any, index: Any, value: Any, *, notes: Notes
) -> fx.Node:
    """The statement `whole[index] = value` as calls before `before` that return the new whole.

    Raises:
        NotTraceable: the index is not made of numbers and slices, nor one mask or tensor.
    """
    x = notes.values[whole]
    with graph.inserting_before(before):
        if isinstance(index, fx.Node) and isinstance(at := notes.values.get(index), Tensor):
            if isinstance(notes.values.get(value, value), Tensor):
                new = graph.call_method("index_put", (whole, (index,), value))
            elif at.dtype == torch.bool:
                for _ in range(x.ndim - at.ndim):  # broadcasting starts at the last axis
                    index = graph.call_method("unsqueeze", (index, -1))
                new = graph.call_method("masked_fill", (whole, index, value))
            else:
                value = graph.call_method("new_full", (whole, (), value))
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
    notes.values[new] = x  # x was overwritten in place, so it has the new value
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
