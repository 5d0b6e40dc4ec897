"""Adds with a factor as two nodes, so that `torch.add(x, y, alpha=a)` is a residual add, too."""

import operator

from torch import fx

from updp.blocks.tracing.contexts import contexts_of, set_contexts
from updp.blocks.tracing.overwrites import Notes
from updp.blocks.tracing.region import is_add


def split_scaled_adds(graph: fx.Graph, notes: Notes) -> None:
    """Write each `x.add(y, alpha=a)` as `x.add(y * a)`, with the new nodes' values in `notes`."""
    for node in list(graph.nodes):
        if not is_add(node) or "out" in node.kwargs:
            continue
        # By any of torch's signatures, also the old one, `torch.add(x, a, y)`.
        names = ("input", "alpha", "other") if len(node.args) == 3 else ("input", "other")
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        factor, other = given.pop("alpha", None), given.pop("other", None)
        if factor is None or not isinstance(other, fx.Node):
            continue
        with graph.inserting_before(node):
            scaled = graph.call_function(operator.mul, (other, factor))
        set_contexts(scaled, contexts_of(node))
        # By position: the same tensor may be on both sides, and only one of them is scaled.
        node.args, node.kwargs = (given.pop("input"), scaled), given
        inputs = scaled.all_input_nodes
        if all(each in notes.values for each in inputs):
            values = fx.map_arg((other, factor), notes.values.__getitem__)
            notes.values[scaled] = operator.mul(*values)
        if any(each in notes.valued for each in inputs):
            notes.valued.add(scaled)
