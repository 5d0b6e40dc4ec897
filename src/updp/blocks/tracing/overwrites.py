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
    """Records of each node of a graph while it is traced on a real call.

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
    newest = _Newest(graph, notes)
    for node in list(graph.nodes):
        newest.read(node)
        for base in notes.overwritten.get(node, ()):
            newest.overwrite(base, node)
        for base in notes.spoiled.get(node, ()):
            newest.lose(notes.values[base], node)
        newest.seen.append(node)


class _Newest:
    """Which node holds the present value of each tensor, as one follows a graph.

    now:   by the nodes that held it before
    lost:  nodes whose tensor was overwritten in part, and by what
    seen:  nodes so far
    """

    def __init__(self, graph: fx.Graph, notes: Notes) -> None:
        self._graph, self._notes = graph, notes
        self.now: dict[fx.Node, fx.Node] = {}
        self.lost: dict[fx.Node, fx.Node] = {}
        self.seen: list[fx.Node] = []

    def read(self, node: fx.Node) -> None:
        """Let a node read present values."""
        for old in node.all_input_nodes:
            if old in self.lost:
                by = self.lost[old].name
                raise NotTraceable(f"it reads `{old.name}`, which `{by}` overwrites in part")
            node.replace_input_with(old, self.now.get(old, old))

    def overwrite(self, base: fx.Node, node: fx.Node) -> None:
        """Note that `node` overwrote the tensor of `base`, and what that makes of others."""
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
        """Note that `node` changed a tensor without returning it."""
        for other in self.seen:
            if share_memory(self._notes.values.get(other), value):
                self.lost[other] = node

    def _is_view(self, whole: Any, value: Tensor) -> bool:
        return whole is not None and share_memory(self._notes.values.get(whole), value)

    def _goes_on(self, whole: Any, part: fx.Node, new: fx.Node) -> bool:
        """Whether `new` is assigned to `whole[i]` next, of which it overwrote the value `part`."""
        for user in new.users:
            if user.target is operator.setitem and user.args[1:] == (part.args[1], new):
                target: Any = user.args[0]
                return self.now.get(target, target) is whole
        return False


def version_of(value: Any) -> int:
    """How often a tensor was changed in place."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


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
    graph: fx.Graph, before: fx.Node, whole: Any, index: Any, value: Any, *, notes: Notes
) -> fx.Node:
    """The statement `whole[index] = value` as calls that return the whole, put in `before`.

    Raises:
        NotTraceable: the index is not made of numbers and slices, nor one mask or tensor.
    """
    x = notes.values[whole]
    with graph.inserting_before(before):
        if isinstance(index, fx.Node) and isinstance(at := notes.values.get(index), Tensor):
            if isinstance(notes.values.get(value, value), Tensor):
                new = graph.call_method("index_put", (whole, (index,), value))
            elif at.dtype == torch.bool:
                for _ in range(x.ndim - at.ndim):  # it fills from the last axis
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
