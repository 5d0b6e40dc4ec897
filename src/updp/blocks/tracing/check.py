"""Compare a traced graph with its module, and say why they differ."""

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from updp.blocks.modules import UserCodeError, call_user_code, like_of
from updp.blocks.tracing.calls import Arguments, cloned
from updp.blocks.tracing.contexts import autocast_in
from updp.blocks.tracing.interpret import NotTraceable, WrongGraph, run_graph
from updp.blocks.values import difference

_TOLERANCE = 1e-4  # relative: between a graph and its module


def check_graph(
    module: nn.Module,
    graph: fx.Graph,
    larger: Arguments,
    traced: tuple[Arguments, Mapping[str, Any]],
    *,
    only: bool,
) -> None:
    """Check that the graph computes the same as the module for a larger number of images.

    A trace may depend on sizes, but not on the number of images, and if the model calls the module
    at several sizes, not on these either.

    Args:
        module: the module in evaluation mode.
        graph: the graph of its forward.
        larger: arguments for more images.
        traced: arguments that the graph was traced with, and the values of its nodes for them.
        only: whether the model calls it at one size only.

    Raises:
        NotTraceable: the outputs differ, or one of the two fails; the text says why.
    """
    call, values = traced
    own = _run(module, larger)
    made = output_of(graph, run_graph(module, graph, larger))
    # fx's interpreter returns dicts of a type of its own.
    if isinstance(own, Mapping) and type(own) not in (dict, type(made)):
        raise NotTraceable(f"it returns a {type(own).__name__}, which a graph does not make")
    if difference(made, own) <= _TOLERANCE:
        return
    if autocast := autocast_in(graph, like_of(module).device.type):
        raise NotTraceable(
            f"its forward enters {autocast}, and its graph is compared without: enter it outside "
            "of this forward, as around the call of the model"
        )
    if computes(module, call, output_of(graph, values)):
        what = "number of images" if only else "size or number of images"
        raise WrongGraph(f"its graph holds for one {what} only")
    if difference(_run(module, call), _run(module, call)) > _TOLERANCE:
        raise NotTraceable("two evaluations of it differ: it is random, or keeps a state")
    raise WrongGraph(
        "its graph computes something else than it does: it may read what its modules keep"
    )


def computes(module: nn.Module, call: Arguments, expected: Any) -> bool:
    """Whether the module's own forward, without its hooks, returns `expected` for a call.

    Raises NotTraceable if the forward fails.
    """
    return difference(expected, _run(module, call)) <= _TOLERANCE


def output_of(graph: fx.Graph, values: Mapping[str, Any]) -> Any:
    """The value that a graph returns, from the values of its nodes by name."""
    *_, output = graph.nodes
    return values[output.name]  # a module's node may be called "output", too


def _run(module: nn.Module, call: Arguments) -> Any:
    args, kwargs = fx.node.map_aggregate((call.args, call.kwargs), cloned)
    try:
        return call_user_code(module.forward, *args, **kwargs)
    except UserCodeError as error:  # its parent may prepare each call
        raise NotTraceable(f"its forward fails where it is called alone ({error})") from error
