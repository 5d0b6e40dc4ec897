"""Find children to trace as part of their module, because a branch goes through them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.interpret import NotTraceable
from updp.blocks.tracing.region import data_nodes, is_add
from updp.blocks.tracing.signature import holds_tensor

Traced = tuple[fx.Graph, Mapping[fx.Node, Any]]  # a graph, and the values of its nodes


def to_inline(
    module: nn.Module, traced: Traced, trace: Callable[[nn.Module, Arguments], Traced]
) -> dict[str, bool]:
    """Paths of children to trace through, with whether sites are named after the child itself.

    A child that adds two of its arguments contains an add of `module` (output modules of older
    ViTs); its sites are named after its own children. A child that ignores one of its arguments,
    or returns several values from one path, hides which values a branch really reads. So does one
    that returns a parameter of its own beside what it computes: all of it would run for that.

    Args:
        module: the module that calls the children.
        traced: the graph of `module` with its children as leaves, and values of a real call.
        trace: function that traces a child.
    """
    graph, values = traced
    found: dict[str, bool] = {}
    crossed = _crossed(graph)
    for node in graph.nodes:
        if node.op != "call_module" or not all(n in values for n in (node, *node.all_input_nodes)):
            continue
        several = node in crossed and not isinstance(values[node], Tensor)
        if len(node.all_input_nodes) < 2 and not several:
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        child = module.get_submodule(str(node.target))
        if type(child).__module__.startswith("torch.nn."):
            continue
        try:
            inner, known = trace(child, Arguments(args, kwargs))
        except NotTraceable:
            continue
        if _adds_arguments(inner):
            found[str(node.target)] = False
        elif (
            several
            and holds_tensor(values[node])
            and (_is_straight(inner) or _returns_own_tensor(inner, known))
        ) or (node in crossed and _ignores_a_tensor(inner, known)):
            found[str(node.target)] = True
    return found


def _crossed(graph: fx.Graph) -> set[fx.Node]:
    """Nodes from the fork of two paths to the add that joins them; the fork is included."""
    ancestors = data_nodes(graph)
    at = {node: i for i, node in enumerate(graph.nodes)}.__getitem__
    found: set[fx.Node] = set()
    for add in filter(is_add, graph.nodes):
        sides = [ancestors[n] for n in add.all_input_nodes if n in ancestors]
        if len(sides) == 2 and (common := sides[0] & sides[1]):
            fork = max(common, key=at)
            found |= {n for n in sides[0] | sides[1] if n is fork or fork in ancestors[n]}
    return found


def _adds_arguments(graph: fx.Graph) -> bool:
    """Whether a graph adds two values that depend on different arguments only."""
    ancestors = data_nodes(graph)
    for add in filter(is_add, graph.nodes):
        sides = [ancestors[n] for n in add.all_input_nodes if n in ancestors]
        if len(sides) == 2 and not sides[0] & sides[1]:
            return True
    return False


def _ignores_a_tensor(graph: fx.Graph, values: Mapping[fx.Node, Any]) -> bool:
    """Whether the output of a graph is independent of one of its tensor arguments."""
    *_, output = graph.nodes
    read = data_nodes(graph).get(output, set())
    return any(
        isinstance(values.get(node), Tensor) and node not in read
        for node in graph.nodes
        if node.op == "placeholder"
    )


def _is_straight(graph: fx.Graph) -> bool:
    """Whether each node reads at most one value that depends on the arguments."""
    data = data_nodes(graph)
    inner = (n for n in graph.nodes if n.op != "output")
    return all(sum(p in data for p in n.all_input_nodes) < 2 for n in inner)


def _returns_own_tensor(graph: fx.Graph, values: Mapping[fx.Node, Any]) -> bool:
    """Whether a graph returns a tensor of its module, such as a bias that the caller adds."""
    *_, output = graph.nodes
    return any(n.op == "get_attr" and holds_tensor(values.get(n)) for n in output.all_input_nodes)
