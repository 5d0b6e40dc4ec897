"""Run a traced graph on the arguments of a real call, and record the value of every node."""

from typing import Any

import torch
from torch import fx, nn

from updp.blocks.teach import forward_of
from updp.blocks.tracing.calls import Arguments, arguments, cloned
from updp.errors import is_out_of_memory


class NotTraceable(Exception):
    """A forward cannot be turned into an fx graph; the text says why."""


class WrongGraph(NotTraceable):
    """The fx graph of a forward does not compute what the forward does; the text says why."""


def run_graph(module: nn.Module, graph: fx.Graph, call: Arguments) -> dict[str, Any]:
    """Run `graph` on the arguments of a call; the value of every node by name.

    Raises:
        NotTraceable: the call does not fit the module's signature, or the graph fails on it.
    """
    values: dict[str, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            values[n.name] = cloned(result)  # in-place operations may change the result later
            return result

        def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
            return fx.node.map_aggregate(by_name[str(target).lstrip("*")], cloned)

    try:
        by_name = arguments(forward_of(module), call)
    except TypeError as error:
        raise NotTraceable(f"its call is not understood: {first_line(error)}") from error
    try:
        with torch.no_grad():
            Recorder(module, garbage_collect_values=False, graph=graph).run()
    except Exception as error:  # user code may raise any
        if is_out_of_memory(error):
            raise
        raise WrongGraph(f"its graph does not run: {first_line(error)}") from error
    return values


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has no text."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
