"""Trace one module alone, with its children as leaves."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import Attribute

from updp.blocks.region import data_nodes, is_add
from updp.blocks.taught import forward_of

_PURE = {getattr, operator.getitem, torch._assert, "size", "dim"}
_MISSING = object()


class NotTraceable(Exception):
    """A module whose own forward cannot be turned into a graph; the text says why."""


@dataclass(frozen=True)
class Arguments:
    """Arguments with which the model calls one of its modules."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def trace_alone(
    module: nn.Module, call: Arguments | None = None, *, both_modes: bool = True
) -> fx.Graph:
    """Graph of `module.forward` in evaluation; its `call_module` targets are child modules.

    With a `call` its values decide conditions and loops on sizes; and, where nothing else will do,
    that an argument which was None is always None. A child that adds two of its arguments is
    traced as part of `module`, for that add is the module's own.

    Raises:
        NotTraceable: the forward has control flow on tensors, or (with `both_modes`) does one
            thing in training and another in evaluation, of which a graph would freeze one, or
            does what a graph would lose.
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
        return _trace_once(module, call, both_modes, inlined, fixed=False)
    except NotTraceable:
        if call is None:
            raise
        return _trace_once(module, call, both_modes, inlined, fixed=True)


def _trace_once(
    module: nn.Module,
    call: Arguments | None,
    both_modes: bool,
    inlined: frozenset[str],
    fixed: bool,
) -> fx.Graph:
    graphs = []
    try:
        # Only the module's own flag: its children are leaves and keep theirs.
        for mode in (True, False) if both_modes else (False,):
            with restored(module), torch.no_grad():
                module.training = mode
                graphs.append(_Alone(call, inlined, fixed).trace(module))
    except Exception as error:  # fx raises many kinds, and user code may raise any
        raise NotTraceable(_first_line(error)) from error
    if str(graphs[0]) != str(graphs[-1]):
        raise NotTraceable("its forward differs between training and evaluation")
    _refuse_losses(graphs[-1])
    return graphs[-1]


class _Proxy(fx.Proxy):
    """Knows its value where the call is known: sizes may be counted, compared, computed with."""

    def __getattr__(self, name: str) -> _Attribute:
        return _Attribute(self, name)

    def __len__(self) -> int:
        return len(self._value())

    def __index__(self) -> int:
        return operator.index(self._value())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def _number(self) -> Any:
        value = self._value()
        if not isinstance(value, (int, float)):
            raise TypeError(f"a number was made of `{self.node.name}`")
        return value

    def _value(self) -> Any:
        tracer = self.tracer
        assert isinstance(tracer, _Alone)
        value = tracer.values.get(self.node, _MISSING)
        if value is _MISSING:
            raise TypeError(f"the value of `{self.node.name}` is not known")
        return value


class _Attribute(_Proxy, Attribute):
    """Such as `x.shape`."""


class _Alone(fx.Tracer):
    """Every child is a leaf, so control flow inside a child never matters here.

    Each node is computed as it is recorded, from the arguments of a real call.
    """

    def __init__(self, call: Arguments | None, inlined: frozenset[str], fixed: bool) -> None:
        super().__init__()
        self.call, self.inlined, self.fixed = call, inlined, fixed
        self.values: dict[fx.Node, Any] = {}
        self.computing = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.inlined

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        if self.call is not None and kind not in ("placeholder", "output"):
            inputs = node.all_input_nodes
            if all(n in self.values for n in inputs):
                self.computing = True
                try:
                    self.values[node] = self._run(node)
                finally:
                    self.computing = False
        return node

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """Record the call, unless it is one of a value's own computation."""
        if self.computing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter as a node, unless in a value's own computation."""
        if self.computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def _run(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """One placeholder per named parameter, passed as the model passes them.

        fx's own way fails on a forward that is wrapped by a decorator with `*args, **kwargs`.
        """
        assert isinstance(self.root, nn.Module)
        root_fn = forward_of(self.root)
        named = _named_parameters(root_fn)
        if self.call is None or named is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        given = arguments(root_fn, self.call)
        if any(given[name] for name in given.keys() - named.keys()):
            raise TypeError("it takes arguments of any number or name")
        by_place = [*named][: len(self.call.args)]
        values: list[Any] = []
        for name, default in named.items():
            proxy = self.create_proxy("placeholder", name, default, {})
            self.values[proxy.node] = fx.node.map_aggregate(given[name], _copied)
            values.append(None if given[name] is None and self.fixed else proxy)

        def call(root: nn.Module, *values: Any) -> Any:
            both = dict(zip(named, values, strict=True))
            return root_fn(root, *(both.pop(name) for name in by_place), **both)

        return call, [self.root, *values]

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.values.get(obj.node, _MISSING)
        if value is _MISSING or isinstance(value, torch.Tensor):
            return super().to_bool(obj)
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator:
        value = self.values.get(obj.node)
        if isinstance(value, (tuple, list)):
            return iter([obj[i] for i in range(len(value))])  # type: ignore[index]
        return super().iter(obj)


def _named_parameters(forward: Callable[..., Any]) -> dict[str, tuple[Any, ...]] | None:
    """Each parameter of a method with its default, if any; None where one has no name to pass."""
    found: dict[str, tuple[Any, ...]] = {}
    for p in list(inspect.signature(inspect.unwrap(forward)).parameters.values())[1:]:
        if p.kind is p.POSITIONAL_ONLY:
            return None
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            found[p.name] = () if p.default is p.empty else (p.default,)
    return found


def arguments(forward: Callable[..., Any], call: Arguments) -> dict[str, Any]:
    """The value of each parameter of `forward`, a method, in a call of it; defaults included."""
    signature = inspect.signature(inspect.unwrap(forward))
    bound = signature.bind(None, *call.args, **call.kwargs)
    bound.apply_defaults()
    return dict(list(bound.arguments.items())[1:])


def _adding_children(module: nn.Module, graph: fx.Graph, call: Arguments) -> frozenset[str]:
    """Children that add two of their arguments: their residual add is the caller's."""
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
            if len(sides) == 2 and not sides[0] & sides[1]:
                found.add(str(node.target))
    return frozenset(found)


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Take back what a forward does to its own module: attributes, flags, counters."""
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
        if not _is_pure(node):
            label = node.target if node.op == "call_module" else node.name
            raise NotTraceable(f"its forward drops what `{label}` returns")
        graph.erase_node(node)


def _is_pure(node: fx.Node) -> bool:
    """Whether it does nothing but return a value: names of what works in place end in `_`."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
    if node.op == "call_module" or node.target is operator.setitem or node.kwargs.get("inplace"):
        return False
    return (
        node.op == "get_attr"
        or node.target in _PURE
        or not (name.endswith("_") or name in ("iadd", "imul", "isub", "itruediv"))
    )


def run_graph(module: nn.Module, graph: fx.Graph, call: Arguments) -> dict[str, Any]:
    """Run `graph` on a real call and return every node's value by node name.

    Tensors are copied as they appear, because in-place operations would change them later.
    """
    values: dict[str, Any] = {}

    class Record(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            values[n.name] = _copied(result)
            return result

    try:
        given = arguments(forward_of(module), call)
    except TypeError as error:
        raise NotTraceable(f"its call is not understood: {_first_line(error)}") from error
    ordered = [
        fx.node.map_aggregate(given[str(n.target)], _copied)
        for n in graph.nodes
        if n.op == "placeholder" and not str(n.target).startswith("*")
    ]
    try:
        with torch.no_grad():
            Record(fx.GraphModule(module, graph), garbage_collect_values=False).run(*ordered)
    except Exception as error:  # user code may raise any
        raise NotTraceable(f"its graph does not run: {_first_line(error)}") from error
    return values


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
