"""Values of all nodes of a module's graph, for each call that the model makes."""

from collections.abc import Sequence

from torch import fx, nn

from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.check import check_graph, computes, output_of
from updp.blocks.tracing.interpret import NotTraceable, WrongGraph, run_graph
from updp.blocks.tracing.node_values import NoValues, Values
from updp.blocks.tracing.state import why_stateful

NEVER = "the model never calls it"


def real_values(
    module: nn.Module, graph: fx.Graph, calls: Sequence[Arguments], larger: Sequence[Arguments]
) -> Values | NoValues:
    """Values of all nodes in each call of a module, or the reason why there are none.

    `larger` has the module's calls with one sample more, for which the graph must hold, too.
    """
    if not calls:
        return NoValues(NEVER)
    try:
        values = [run_graph(module, graph, call) for call in calls]
        sizes = {call.shapes: call for call in reversed(larger)}
        for call in sizes.values():
            check_graph(module, graph, call, (calls[0], values[0]), only=len(sizes) == 1)
        for call, found in zip(calls[1:], values[1:], strict=True):
            if not computes(module, call, output_of(graph, found)):
                raise WrongGraph("its graph holds for one of its calls only")
        return values
    except NotTraceable as error:
        if stateful := why_stateful(module, calls[0]):
            return NoValues(stateful)
        return NoValues(str(error), isinstance(error, WrongGraph))
