"""A symbolic tracer that knows the values: each node is computed as it is recorded."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import Attribute

from updp.blocks.teach import forward_of
from updp.blocks.tracing.calls import Arguments, arguments, copied

_MISSING = object()


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
        assert isinstance(tracer, Tracer)
        value = tracer.values.get(self.node, _MISSING)
        if value is _MISSING:
            raise TypeError(f"the value of `{self.node.name}` is not known")
        return value


class _Attribute(_Proxy, Attribute):
    """Such as `x.shape`."""


class Tracer(fx.Tracer):
    """Every child is a leaf, so control flow inside a child never matters here.

    Each node is computed as it is recorded, from the arguments of a real call.
    """

    def __init__(self, call: Arguments | None, inlined: frozenset[str], fixed: bool) -> None:
        super().__init__()
        self.call, self.inlined, self.fixed = call, inlined, fixed
        self.values: dict[fx.Node, Any] = {}
        self.computing = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Every child is a leaf, but for those that are to be traced as part of the module."""
        return module_qualified_name not in self.inlined

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that knows its value."""
        return _Proxy(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Record a node, and compute it where the values of its inputs are known."""
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
            self.values[proxy.node] = fx.node.map_aggregate(given[name], copied)
            values.append(None if given[name] is None and self.fixed else proxy)

        def call(root: nn.Module, *values: Any) -> Any:
            both = dict(zip(named, values, strict=True))
            return root_fn(root, *(both.pop(name) for name in by_place), **both)

        return call, [self.root, *values]

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A condition: decided by sizes and flags, never by a tensor's values."""
        value = self.values.get(obj.node, _MISSING)
        if value is _MISSING or isinstance(value, torch.Tensor):
            return super().to_bool(obj)
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator:
        """A loop over a tuple or list; over a tensor only where fx can unpack it."""
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
