"""Trace a module again where its graph has whole numbers made of sizes as constants."""

from collections.abc import Callable

from torch import fx, nn

from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.check import computes, output_of
from updp.blocks.tracing.interpret import NotTraceable, run_graph
from updp.blocks.tracing.proxies import to_int
from updp.blocks.tracing.trace import trace_alone
from updp.blocks.tracing.whole_numbers import WholeNumbers, made_nodes, noted


def trace_inside(module: nn.Module, call: Arguments) -> fx.Graph:
    """Trace a module inside of a block, with nodes for the whole numbers that it makes of sizes.

    There is no call of it with another number of samples, which would tell whether constants do.

    Raises NotTraceable: see `trace_alone`; or there are no nodes for some of these numbers.
    """

    def holds(graph: fx.Graph) -> bool:
        return computes(module, call, output_of(graph, run_graph(module, graph, call)))

    with noted() as found:
        graph = trace_alone(module, call)
    if not found.calls:
        return graph
    if (other := trace_with_nodes(module, call, found, holds)) is None:
        raise NotTraceable(f"its graph is for some sizes only{found.describe()}")
    return other


def trace_with_nodes(
    module: nn.Module, call: Arguments, found: WholeNumbers, holds: Callable[[fx.Graph], bool]
) -> fx.Graph | None:
    """Trace a module with nodes for the calls that were noted; None if the graph does not hold."""
    try:
        with made_nodes(found, to_int) as left:
            graph = trace_alone(module, call)
        return graph if not left.calls and holds(graph) else None
    except NotTraceable:
        return None
