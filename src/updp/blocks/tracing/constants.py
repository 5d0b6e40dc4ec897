"""Constants of a model: values in its graphs that do not depend on what the model is given."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import fx, nn

from updp.blocks.paths import under
from updp.blocks.teach import forward_of
from updp.blocks.tracing.calls import signature_of
from updp.blocks.tracing.region import is_size


def data_in(graph: fx.Graph, constant: Collection[str] = ()) -> set[fx.Node]:
    """Nodes whose values depend on those of a placeholder that is none of the `constant` ones.

    What reads only the size of a tensor, such as a table of positions, does not depend on it. What
    a module returns that is given nothing counts as data: it may keep some.
    """
    found: set[fx.Node] = set()
    for node in graph.nodes:
        read = any(source in found for source in node.all_input_nodes) and not is_size(node)
        if node.op == "placeholder":
            read = node.target not in constant
        elif node.op == "call_module" and not node.all_input_nodes:
            read = True
        if read:
            found.add(node)
    return found


def constant_inputs(
    modules: Mapping[str, nn.Module], graphs: Mapping[str, fx.Graph]
) -> dict[str, frozenset[str]]:
    """Parameters of each module's forward that its callers give nothing but constants.

    The bias of an attention, say, may be computed by an MLP from a table of positions.

    Args:
        modules: composite modules of one model by path, parents first.
        graphs: those of the modules that could be traced; a call from elsewhere is not seen.
    """
    paths = {module: path for path, module in modules.items()}
    given: dict[str, dict[str, bool]] = {}  # whether data, by module and parameter
    found: dict[str, frozenset[str]] = {}
    for path, graph in graphs.items():
        outer = max((p for p in modules if p != path and under(path, p)), key=len, default=path)
        if path not in given and outer != path and outer in graphs:
            found[path] = frozenset()
            continue  # its caller's graph holds its nodes, or it is never called
        own = given.get(path, {})
        found[path] = frozenset(name for name, is_data in own.items() if not is_data)
        data = data_in(graph, found[path])
        for node in graph.nodes:
            if node.op != "call_module":
                continue
            child = modules[path].get_submodule(str(node.target))
            if child not in paths:
                continue
            known = given.setdefault(paths[child], {})
            signature = signature_of(forward_of(child))
            for name, value in signature.bind(*node.args, **node.kwargs).arguments.items():
                known[name] = known.get(name, False) or not data.isdisjoint(_nodes_in(value))
    return found


def _nodes_in(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found
