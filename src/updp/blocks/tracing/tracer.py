"""An fx tracer that computes each node as it records it, so that sizes are known."""

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
    """A proxy whose concrete value can be read: sizes may be compared, counted, iterated."""

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
    """An attribute of a proxy, such as `x.shape`; fx creates its node on first use."""


class Tracer(fx.Tracer):
    """A tracer of one module, with concrete values from the arguments of a real call.

    Every child is a leaf, so control flow inside a child does not matter.

    Args:
        call: arguments of a real call; None traces without values.
        inlined: paths of children that are traced through instead of being leaves.
        fixed: whether arguments that are None in `call` become constants.
    """

    def __init__(self, call: Arguments | None, inlined: frozenset[str], fixed: bool) -> None:
        super().__init__()
        self.call, self.inlined, self.fixed = call, inlined, fixed
        self.values: dict[fx.Node, Any] = {}
        self.computing = False  # while a node's value is computed, nothing is to be recorded

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Every child is a leaf, except those of `inlined`."""
        return module_qualified_name not in self.inlined

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wrap a node in a proxy with a concrete value."""
        return _Proxy(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Record a node, and compute its value if those of its inputs are known."""
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
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Record a call of a module, or run it while a value is computed."""
        if self.computing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record an access to a parameter, or return it while a value is computed."""
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
        """Create one placeholder per named parameter; they are passed as in `call`."""
        # fx reads the outer signature, and so fails on a forward that is wrapped by a decorator
        # with `*args, **kwargs`.
        assert isinstance(self.root, nn.Module)
        root_fn = forward_of(self.root)
        named = _named_parameters(root_fn)
        if self.call is None or named is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        bound = arguments(root_fn, self.call)
        if any(bound[name] for name in bound.keys() - named.keys()):
            raise TypeError("it takes arguments of any number or name")
        by_place = [*named][: len(self.call.args)]
        values: list[Any] = []
        for name, default in named.items():
            proxy = self.create_proxy("placeholder", name, default, {})
            self.values[proxy.node] = fx.node.map_aggregate(bound[name], copied)
            values.append(None if bound[name] is None and self.fixed else proxy)

        def call(root: nn.Module, *values: Any) -> Any:
            keywords = dict(zip(named, values, strict=True))
            return root_fn(root, *(keywords.pop(name) for name in by_place), **keywords)

        return call, [self.root, *values]

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide a condition by sizes and flags, never by a tensor's values."""
        value = self.values.get(obj.node, _MISSING)
        if value is _MISSING or isinstance(value, torch.Tensor):
            return super().to_bool(obj)
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Iterate over a tuple or list; over a tensor only where fx can unpack it."""
        value = self.values.get(obj.node)
        if isinstance(value, (tuple, list)):
            return iter([obj[i] for i in range(len(value))])  # type: ignore[index]
        return super().iter(obj)


def _named_parameters(forward: Callable[..., Any]) -> dict[str, tuple[Any, ...]] | None:
    """Parameters of a method with their defaults, as `()` or `(default,)`.

    None if a parameter is positional-only. `*args` and `**kwargs` are left out.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for p in list(inspect.signature(inspect.unwrap(forward)).parameters.values())[1:]:
        if p.kind is p.POSITIONAL_ONLY:
            return None
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            found[p.name] = () if p.default is p.empty else (p.default,)
    return found
