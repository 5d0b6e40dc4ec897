"""Run a traced graph on a real call, and keep what every node gave."""

from typing import Any

import torch
from torch import fx, nn

from updp.blocks.teach import forward_of
from updp.blocks.tracing.calls import Arguments, arguments, copied


class NotTraceable(Exception):
    """A module whose own forward cannot be turned into a graph; the text says why."""


def run_graph(module: nn.Module, graph: fx.Graph, call: Arguments) -> dict[str, Any]:
    """Run `graph` on a real call and return every node's value by node name.

    Tensors are copied as they appear, because in-place operations would change them later.
    """
    values: dict[str, Any] = {}

    class Record(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            values[n.name] = copied(result)
            return result

    try:
        given = arguments(forward_of(module), call)
    except TypeError as error:
        raise NotTraceable(f"its call is not understood: {first_line(error)}") from error
    ordered = [
        fx.node.map_aggregate(given[str(n.target)], copied)
        for n in graph.nodes
        if n.op == "placeholder" and not str(n.target).startswith("*")
    ]
    try:
        with torch.no_grad():
            Record(fx.GraphModule(module, graph), garbage_collect_values=False).run(*ordered)
    except Exception as error:  # user code may raise any
        raise NotTraceable(f"its graph does not run: {first_line(error)}") from error
    return values


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
