"""Trace one module into an fx graph, with its children as leaves."""

import copy
import operator
import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import fx, nn

from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.contexts import contexts_of, forget_switches_of_evaluation
from updp.blocks.tracing.foreign import Foreign, foreign_function
from updp.blocks.tracing.inlining import Traced, to_inline
from updp.blocks.tracing.interpret import NotTraceable, first_line
from updp.blocks.tracing.overwrites import Notes, follow_overwrites, share_memory
from updp.blocks.tracing.own_place import follow_inputs
from updp.blocks.tracing.scaled_adds import split_scaled_adds
from updp.blocks.tracing.tracer import Tracer
from updp.errors import is_out_of_memory

_DRAWS = 8  # traces of a forward in training that draws: a block may be left out at random
_MOST_FOREIGN = 16  # functions that one forward may call which take no proxies
TABLES = frozenset(vars(nn.Module()))  # torch's own attributes of a module


def trace_alone(
    module: nn.Module, call: Arguments | None = None, *, training: bool = False
) -> fx.Graph:
    """Trace `module.forward`; `call_module` targets are its children.

    It is traced in evaluation mode, but if it passes its mode on, as in
    `F.dropout(x, p, self.training)`, the graph does so, too. Children that hide what a branch reads
    are traced through; see `to_inline`.

    Args:
        call: arguments of a real call. Their values decide conditions and loops on sizes; if
            tracing fails otherwise, arguments that are None become constants.
        training: trace in training mode instead.

    Raises:
        NotTraceable: control flow on tensor values, or effects that a graph would lose.
    """

    def trace(part: nn.Module, given: Arguments) -> Traced:
        return _trace(part, given, training, {})

    graph, values = _trace(module, call, training, {})
    if call is None:
        return graph
    inlined: dict[str, bool] = {}
    while more := to_inline(module, (graph, values), trace):
        try:
            graph, values = _trace(module, call, training, inlined | more)
        except NotTraceable:
            break
        inlined |= more
    follow_inputs(module, call, (graph, values), lambda m, c: _trace(m, c, training, inlined))
    if not training and any(map(contexts_of, graph.nodes)):
        try:
            trained = _trace(module, call, True, inlined)[0]
        except NotTraceable:
            trained = fx.Graph()
        forget_switches_of_evaluation(graph, trained)
    return graph


def trains_otherwise(module: nn.Module, call: Arguments, graph: fx.Graph) -> bool:
    """Whether the forward traced as `graph` behaves differently in training mode."""
    for _ in range(_DRAWS):
        before = torch.get_rng_state(), random.getstate()
        try:
            if str(trace_alone(module, call, training=True)) != str(graph):
                return True
        except NotTraceable:
            return True
        if torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate():
            break  # no random numbers drawn: the result stays the same
    return False


def _trace(
    module: nn.Module, call: Arguments | None, training: bool, inlined: Mapping[str, bool]
) -> Traced:
    """Trace; if that fails, with None as a constant, then again with buffers as constants."""
    make_tracer = partial(Tracer, call, inlined, training=training)
    errors: list[NotTraceable] = []
    for buffers, fixed in product((True, False), (False, True)) if call else [(False, False)]:
        try:
            return _trace_through(module, partial(make_tracer, fixed=fixed, buffers=buffers))
        except NotTraceable as error:
            errors.append(error)
    raise errors[-1]


def _trace_through(module: nn.Module, make_tracer: Callable[..., Tracer]) -> Traced:
    """Trace, repeatedly, with each function that accepts no proxies as one more node."""
    foreign: list[Foreign] = []
    first: NotTraceable | None = None
    while True:
        tracer = make_tracer(foreign=foreign)
        try:
            # A forward may call any method of its children, and these may store their inputs.
            with restored(*module.modules()), torch.no_grad():
                graph = tracer.trace(module)
            follow_overwrites(graph, tracer.notes)
            split_scaled_adds(graph, tracer.notes)
            _settle(graph, tracer.notes)
            return graph, tracer.notes.values
        except NotTraceable:
            raise
        except Exception as error:  # fx raises many kinds, and user code may raise any
            if is_out_of_memory(error):
                raise
            first = first or NotTraceable(_reason(error))
            found = foreign_function(error)
            known = found is None or found.function in [f.function for f in foreign]
            if found is None or known or len(foreign) == _MOST_FOREIGN:
                raise first from error
            foreign.append(found)


def _reason(error: Exception) -> str:
    """Reason why a forward cannot be traced, without fx's jargon."""
    line = first_line(error)
    if "does not support mutation" in line:  # fx's lists and dictionaries
        return "its forward changes a list or a dictionary that it is given"
    return line


@contextmanager
def restored(*modules: nn.Module) -> Iterator[None]:
    """Context that undoes changes by forwards to these modules: attributes, modes, buffers.

    Lists, dictionaries and sets stored on the modules get back their contents.
    """
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in modules]
    values = [(b, b.clone()) for *_, buffers in before for b in buffers.values() if b is not None]
    try:
        with _contents_restored(*modules):
            yield
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        for buffer, value in values:
            _put_back(buffer, value)


def _put_back(buffer: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a value into a buffer; an expanded buffer is written once per place in memory."""
    if buffer.layout is torch.strided:
        once = tuple(slice(None if stride else 1) for stride in buffer.stride())
        buffer, value = buffer[once], value[once]
    buffer.copy_(value)


@contextmanager
def _contents_restored(*modules: nn.Module) -> Iterator[None]:
    """Context that restores the contents of lists, dictionaries and sets stored on modules."""
    contents = [
        pair
        for module in modules
        for key, value in vars(module).items()
        if key not in TABLES
        for pair in _containers((value,))
    ]
    try:
        yield
    finally:
        for container, content in contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


def _containers(value: Any, depth: int = 2) -> Iterator[tuple[Any, Any]]:
    """Plain containers among the values of a container, with copies of their contents."""
    for part in [*value.values()] if isinstance(value, dict) else [*value]:
        if type(part) in (dict, OrderedDict, defaultdict, list, set):
            yield part, copy.copy(part)
            if depth:
                yield from _containers(part, depth - 1)


def _settle(graph: fx.Graph, notes: Notes) -> None:
    """Turn None or empty values into constants; erase nodes that are unused and have no effect.

    Raises:
        NotTraceable: there is a constant tensor, or an unused node changes a tensor of the
            caller.
    """
    for node in graph.nodes:
        if node.op in ("call_function", "call_method") and _is_nothing(notes.values.get(node, 0)):
            for user in list(node.users):
                _put_constant(user, node, notes.values[node])
    for node in reversed(graph.nodes):
        # With this mark fx would keep the code of each graph forever, to record the function in it.
        node.meta.pop("is_wrapped", None)
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            raise NotTraceable("its forward makes a tensor of its own")
        if node.users or node.op in ("placeholder", "output"):
            continue
        if not _is_pure(node, notes):
            label = node.target if node.op == "call_module" else node.name
            raise NotTraceable(f"its forward drops what `{label}` returns")
        graph.erase_node(node)


def _is_nothing(value: Any) -> bool:
    """Whether a value is None, or contains only None, such as missing attention weights."""
    leaves: list[Any] = []
    fx.node.map_aggregate(value, leaves.append)
    return all(leaf is None for leaf in leaves)


def _put_constant(user: fx.Node, node: fx.Node, value: Any) -> None:
    user.args, user.kwargs = fx.node.map_aggregate(
        (user.args, user.kwargs), lambda a: value if a is node else a
    )


def _is_pure(node: fx.Node, notes: Notes) -> bool:
    """Whether a node changes nothing that its caller can see.

    Without a known value torch's names decide: in-place operations end with `_`.
    """
    if node in notes.values:
        changed = (*notes.overwritten.get(node, ()), *notes.spoiled.get(node, ()))
        outer = [n for n in notes.values if n.op in ("placeholder", "get_attr")]
        return not any(
            share_memory(notes.values[n], notes.values[o]) for n in changed for o in outer
        )
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
    if node.op == "call_module" or node.target is operator.setitem or node.kwargs.get("inplace"):
        return False
    return node.op == "get_attr" or not (name.endswith("_") and not name.endswith("__"))
