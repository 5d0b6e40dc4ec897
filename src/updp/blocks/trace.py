"""Trace one module alone, with all of its children as leaves."""

from __future__ import annotations

import torch
from torch import fx, nn


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
            thing in training and another in evaluation, of which a graph would freeze one.
    """
    training = module.training
    graphs = []
    try:
        # Only the module's own flag: its children are leaves and keep theirs.
        for mode in (True, False) if both_modes else (False,):
            module.training = mode
            graphs.append(_Alone().trace(module))
    except Exception as error:  # fx raises many kinds, and user code may raise any
        raise NotTraceable(_first_line(error)) from error
    finally:
        module.training = training
    if str(graphs[0]) != str(graphs[-1]):
        raise NotTraceable("its forward differs between training and evaluation")
    return graphs[-1]


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
    Record(fx.GraphModule(module, graph), garbage_collect_values=False).run(*ordered)
    return values


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
