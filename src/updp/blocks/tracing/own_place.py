"""Let a graph read device and dtype from its inputs, because the model may be moved later."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from updp.blocks.modules import like_of
from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.inlining import Traced
from updp.blocks.tracing.interpret import NotTraceable

_OTHER = torch.float64  # a dtype that no module has by itself: see `models.given`


def follow_inputs(
    module: nn.Module, call: Arguments, traced: Traced, trace: Callable[..., Traced]
) -> None:
    """Let a graph read the device and dtype from inputs, not from the module's own tensors.

    `next(self.parameters()).device` becomes a constant in a trace. It is replaced by a read from
    an input of its node, else from an argument of the forward, if one has the same value.

    Args:
        module: the module that was traced; its graph in `traced` is changed.
        call: arguments of that trace.
        trace: function that traces a module with arguments like `module`.
    """
    graph, values = traced
    own = like_of(module)
    constants = {"device": own.device, "dtype": own.dtype}
    if own.dtype == _OTHER:
        del constants["dtype"]
    found = [
        (node, name)
        for node in graph.nodes
        for name, constant in constants.items()
        if constant in _leaves(node)
    ]
    if not found:
        return
    try:  # A constant named in the code stays the same for a module with another dtype or device.
        with _elsewhere(module):
            other, _ = trace(module, Arguments(*map_aggregate((call.args, call.kwargs), _empty)))
    except NotTraceable:  # it needs values; devices are read more often than named
        found = [(node, name) for node, name in found if name == "device"]
        other = fx.Graph()
    twins = {node.name: node for node in other.nodes}
    for node, name in found:
        if not twins or (node.name in twins and constants[name] not in _leaves(twins[node.name])):
            _replace(node, constants[name], name, values)


def _leaves(node: fx.Node) -> list[Any]:
    found: list[Any] = []
    map_aggregate((node.args, node.kwargs), found.append)
    return found


@contextmanager
def _elsewhere(module: nn.Module) -> Iterator[None]:
    """Context in which a module's tensors have another dtype and are on the meta device."""
    tables: list[dict[str, Any]] = [
        table for part in module.modules() for table in (part._parameters, part._buffers)
    ]
    before = [dict(table) for table in tables]
    empty: dict[Any, Any] = {}  # a shared tensor stays shared
    try:
        for table in tables:
            for key, value in table.items():
                table[key] = empty.setdefault(id(value), _empty(value))
        yield
    finally:
        for table, own in zip(tables, before, strict=True):
            table.update(own)


def _empty(value: Any) -> Any:
    """A tensor of the same shape without values, with another dtype; other values unchanged."""
    if not isinstance(value, Tensor) or value.is_nested or value.layout is not torch.strided:
        return value
    dtype = _OTHER if value.is_floating_point() else value.dtype
    made = torch.empty_like(value, dtype=dtype, device="meta", requires_grad=value.requires_grad)
    return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made


def _replace(node: fx.Node, constant: Any, name: str, values: Mapping[fx.Node, Any]) -> None:
    """Replace a constant among a node's arguments by the attribute `name` of a tensor."""
    if constant not in _leaves(node):
        return
    arguments = [n for n in node.graph.nodes if n.op == "placeholder"]
    found = (
        n
        for n in (*node.all_input_nodes, *arguments)
        if isinstance(value := values.get(n), Tensor) and getattr(value, name) == constant
    )
    source = next(found, None)
    if source is None:
        return
    with node.graph.inserting_before(node):
        read = node.graph.call_function(getattr, (source, name))
    node.args, node.kwargs = map_aggregate(
        (node.args, node.kwargs), lambda leaf: read if leaf == constant else leaf
    )
