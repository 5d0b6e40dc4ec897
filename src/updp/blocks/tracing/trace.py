"""Trace one module into an fx graph, with its children as leaves."""

import copy
import operator
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.interpret import NotTraceable, first_line, run_graph
from updp.blocks.tracing.region import data_nodes, is_add
from updp.blocks.tracing.tracer import Tracer

_TABLES = frozenset(vars(nn.Module()))  # torch's own attributes of a module
_PURE = {getattr, operator.getitem, torch._assert, "size", "dim"}


def trace_alone(
    module: nn.Module, call: Arguments | None = None, *, both_modes: bool = True
) -> fx.Graph:
    """Trace `module.forward` in evaluation mode; `call_module` targets are its children.

    A child that adds two of its arguments is traced through, so that the residual add belongs to
    `module`.

    Args:
        call: arguments of a real call. Their values decide conditions and loops on sizes; where
            tracing fails otherwise, arguments that are None are taken to be constants.
        both_modes: refuse a forward whose graph differs between training and evaluation.

    Raises:
        NotTraceable: control flow on tensor values, a difference between the modes, or effects
            that a graph does not keep.
    """
    graph = _trace(module, call, both_modes)
    if call is not None and (inlined := _adding_children(module, graph, call)):
        try:
            return _trace(module, call, both_modes, inlined)
        except NotTraceable:
            return graph
    return graph


def _trace(
    module: nn.Module,
    call: Arguments | None,
    both_modes: bool,
    inlined: frozenset[str] = frozenset(),
) -> fx.Graph:
    try:
        return _trace_once(module, partial(Tracer, call, inlined, fixed=False), both_modes)
    except NotTraceable:
        if call is None:
            raise
        return _trace_once(module, partial(Tracer, call, inlined, fixed=True), both_modes)


def _trace_once(module: nn.Module, make_tracer: Callable[[], Tracer], both_modes: bool) -> fx.Graph:
    graphs = []
    try:
        # Set the module's own flag only: its children are leaves and keep their modes.
        for mode in (True, False) if both_modes else (False,):
            # A forward may call any method of its children, which may keep what it is given.
            with restored(module), contents_restored(*module.children()), torch.no_grad():
                module.training = mode
                graphs.append(make_tracer().trace(module))
    except Exception as error:  # fx raises many kinds, and user code may raise any
        raise NotTraceable(first_line(error)) from error
    if str(graphs[0]) != str(graphs[-1]):
        raise NotTraceable("its forward differs between training and evaluation")
    _refuse_losses(graphs[-1])
    return graphs[-1]


def _adding_children(module: nn.Module, graph: fx.Graph, call: Arguments) -> frozenset[str]:
    """Paths of children whose own graph adds values of two different arguments."""
    try:
        values = run_graph(module, graph, call)
    except NotTraceable:
        return frozenset()
    found = set()
    for node in graph.nodes:
        if node.op != "call_module" or len(node.all_input_nodes) < 2:
            continue
        child = module.get_submodule(str(node.target))
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n.name])
        try:
            inner = _trace(child, Arguments(args, kwargs), both_modes=True)
        except NotTraceable:
            continue
        ancestors = data_nodes(inner)
        for add in filter(is_add, inner.nodes):
            sides = [ancestors[n] for n in add.all_input_nodes if n in ancestors]
            # Disjoint ancestors: the two sides do not meet within the child.
            if len(sides) == 2 and not sides[0] & sides[1]:
                found.add(str(node.target))
    return frozenset(found)


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Context that undoes what a forward does to its own module: attributes, mode, buffers.

    Lists, dictionaries and sets that it keeps get their contents back.
    """
    before = dict(vars(module))
    buffers = {n: (b, b.clone()) for n, b in module._buffers.items() if b is not None}
    try:
        with contents_restored(module):
            yield
    finally:
        vars(module).clear()
        vars(module).update(before)
        for name, (buffer, value) in buffers.items():
            module._buffers[name] = buffer.copy_(value)


@contextmanager
def contents_restored(*modules: nn.Module) -> Iterator[None]:
    """Context that gives lists, dictionaries and sets that modules keep their contents back."""
    contents = [
        pair
        for module in modules
        for key, value in vars(module).items()
        if key not in _TABLES
        for pair in _containers((value,))
    ]
    try:
        yield
    finally:
        for container, content in contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


def _containers(value: Any, depth: int = 2) -> Iterator[tuple[Any, Any]]:
    """Plain containers in the values of one, with copies of their contents."""
    for part in [*value.values()] if isinstance(value, dict) else [*value]:
        if type(part) in (dict, OrderedDict, defaultdict, list, set):
            yield part, copy.copy(part)
            if depth:
                yield from _containers(part, depth - 1)


def _refuse_losses(graph: fx.Graph) -> None:
    """Erase unused pure nodes; refuse constant tensors and unused results with side effects.

    An unused `x.relu_()` changes `x`, which a graph without the node would lose.
    """
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            raise NotTraceable("its forward makes a tensor of its own")
        if node.users or node.op in ("placeholder", "output"):
            continue
        if not _is_pure(node):
            label = node.target if node.op == "call_module" else node.name
            raise NotTraceable(f"its forward drops what `{label}` returns")
        graph.erase_node(node)


def _is_pure(node: fx.Node) -> bool:
    """Whether the node only returns a value; torch names in-place operations with a final `_`."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
    if node.op == "call_module" or node.target is operator.setitem or node.kwargs.get("inplace"):
        return False
    return (
        node.op == "get_attr"
        or node.target in _PURE
        or not (name.endswith("_") or name in ("iadd", "imul", "isub", "itruediv"))
    )
