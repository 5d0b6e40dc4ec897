"""Trace one module alone, with all of its children as leaves."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn

# Sizes and what is asserted of them: without an effect, so dropped where nothing uses them.
_COMPARE = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
_PURE = {getattr, operator.getitem, operator.mod, torch._assert, "size", "dim", *_COMPARE}


class NotTraceable(Exception):
    """A module whose own forward cannot be turned into a graph; the text says why."""


class _Alone(fx.Tracer):
    """Every child is a leaf, so control flow inside a child never matters here."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def trace_alone(module: nn.Module, *, both_modes: bool = True) -> fx.Graph:
    """Graph of `module.forward` in evaluation; its `call_module` targets are direct children.

    Raises:
        NotTraceable: the forward has control flow on tensors, or (with `both_modes`) does one
            thing in training and another in evaluation, of which a graph would freeze one, or
            does what a graph would lose.
    """
    graphs = []
    try:
        # Only the module's own flag: its children are leaves and keep theirs.
        for mode in (True, False) if both_modes else (False,):
            with _restored(module):
                module.training = mode
                graphs.append(_Alone().trace(module))
    except Exception as error:  # fx raises many kinds, and user code may raise any
        raise NotTraceable(_first_line(error)) from error
    if str(graphs[0]) != str(graphs[-1]):
        raise NotTraceable("its forward differs between training and evaluation")
    _refuse_losses(graphs[-1])
    return graphs[-1]


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Take back what a traced forward does to its own module: attributes, flags, counters."""
    before = dict(vars(module))
    buffers = {n: (b, b.clone()) for n, b in module._buffers.items() if b is not None}
    try:
        yield
    finally:
        vars(module).clear()
        vars(module).update(before)
        for name, (buffer, value) in buffers.items():
            module._buffers[name] = buffer.copy_(value)


def _refuse_losses(graph: fx.Graph) -> None:
    """Refuse tensors made in the forward, and results unused but for their effect (`x.relu_()`)."""
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            raise NotTraceable("its forward makes a tensor of its own")
        if node.users or node.op in ("placeholder", "output"):
            continue
        if node.target not in _PURE:
            label = node.target if node.op == "call_module" else node.name
            raise NotTraceable(f"its forward drops what `{label}` returns")
        graph.erase_node(node)


def run_graph(module: nn.Module, graph: fx.Graph, args: tuple, kwargs: dict) -> dict[str, object]:
    """Run `graph` on real inputs and return every node's value by node name.

    Tensors are copied as they appear, because in-place operations would change them later.
    """
    values: dict[str, object] = {}

    class Record(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            values[n.name] = result.clone() if isinstance(result, torch.Tensor) else result
            return result

    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    names = [str(n.target) for n in placeholders]
    by_name = dict(zip(names, args, strict=False)) | kwargs
    ordered = []
    for node, name in zip(placeholders, names, strict=True):
        if name in by_name:
            value = by_name[name]
        elif node.args:  # the parameter's default
            value = node.args[0]
        else:
            raise NotTraceable(f"argument {name!r} was not passed")
        ordered.append(value.clone() if isinstance(value, torch.Tensor) else value)
    try:
        Record(fx.GraphModule(module, graph), garbage_collect_values=False).run(*ordered)
    except Exception as error:  # user code may raise any
        raise NotTraceable(f"its graph does not run: {_first_line(error)}") from error
    return values


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
