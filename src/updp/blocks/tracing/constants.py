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

    The bias of an attention, say, may be computed by an MLP from a table of positions. A module
    that one without a graph may call has no such parameters, for what it is given is not seen.

    Args:
        modules: composite modules of one model by path, parents first.
        graphs: those of the modules that could be traced.
    """
    roots = _roots(modules, graphs)
    calls = {
        path: [(child, arguments) for child, arguments in made if child not in roots]
        for path, made in _calls(modules, graphs).items()
    }
    given: dict[str, dict[str, bool]] = {}  # whether data, by called module and parameter
    # A module in another's graph holds its nodes, or it is never called.
    called = [path for path in graphs if path in roots]
    waiting = [*called]
    while waiting:
        for child, arguments in calls[waiting.pop()]:
            if child not in given and child in graphs:
                called.append(child)
                waiting.append(child)
            given.setdefault(child, {}).update(dict.fromkeys(arguments, False))
    # All are constants until a caller gives data. As a module may be called by several, and its own
    # calls be read before the last of them, that is repeated until it finds no more data.
    changed = True
    while changed:
        changed = False
        for path in called:
            data = data_in(graphs[path], _constant(given.get(path, {})))
            for child, arguments in calls[path]:
                for name, nodes in arguments.items():
                    if not given[child][name] and not data.isdisjoint(nodes):
                        given[child][name] = changed = True
    return {path: _constant(given.get(path, {})) for path in graphs}


def _calls(
    modules: Mapping[str, nn.Module], graphs: Mapping[str, fx.Graph]
) -> dict[str, list[tuple[str, dict[str, list[fx.Node]]]]]:
    """Calls in each graph of other modules: their paths, and the nodes given by parameter."""
    paths = {module: path for path, module in modules.items()}
    found: dict[str, list[tuple[str, dict[str, list[fx.Node]]]]] = {path: [] for path in graphs}
    for path, graph in graphs.items():
        for node in graph.nodes:
            if node.op != "call_module":
                continue
            child = modules[path].get_submodule(str(node.target))
            if child in paths:
                call = signature_of(forward_of(child)).bind(*node.args, **node.kwargs)
                nodes = {name: _nodes_in(value) for name, value in call.arguments.items()}
                found[path].append((paths[child], nodes))
    return found


def _roots(modules: Mapping[str, nn.Module], graphs: Mapping[str, fx.Graph]) -> set[str]:
    """Modules with graphs that are in no other, or that one without a graph has: it may call them.

    It may share them with one that has a graph.
    """
    paths = {modules[path]: path for path in graphs}
    found = {path for path in graphs if not any(under(path, p) for p in modules if p != path)}
    waiting = [modules[path] for path in modules if path not in graphs]
    seen = {*waiting}
    while waiting:
        for child in waiting.pop().children():
            if child in paths:
                found.add(paths[child])
            elif child not in seen:
                seen.add(child)
                waiting.append(child)
    return found


def _constant(given: Mapping[str, bool]) -> frozenset[str]:
    return frozenset(name for name, is_data in given.items() if not is_data)


def _nodes_in(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found
