"""An fx tracer that computes each node as it records it, so that sizes are known."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from updp.blocks.lengths import counted
from updp.blocks.paths import under
from updp.blocks.teach import forward_of
from updp.blocks.tracing.calls import Arguments, cloned
from updp.blocks.tracing.contexts import Contexts
from updp.blocks.tracing.foreign import Foreign, construction, has_proxy, recorded, unscripted
from updp.blocks.tracing.makers import MAKERS, Makers
from updp.blocks.tracing.overwrites import Notes, are_one, version_of
from updp.blocks.tracing.proxies import Flag, ValueProxy, depends_on_inputs, is_batch, is_flag
from updp.blocks.tracing.signature import Parameter, holds_tensor, is_constant, parameters

# Functions that read only the size and dtype of a tensor.
_SIZED = {"zeros_like", "ones_like", "full_like", "empty_like"} | {
    f"new_{name}" for name in ("zeros", "ones", "full", "empty")
}


class Tracer(fx.Tracer):
    """A tracer of one module, with concrete values from the arguments of a real call.

    Every child is a leaf, so that control flow inside a child does not matter. The module's
    `training` is a node if used as an argument, as in `F.dropout(x, p, self.training)`; in
    conditions it has the value `training`.

    Args:
        call: arguments of a real call; None traces without values.
        inlined: paths of children to trace through instead of being leaves, with whether sites
            are named after the child itself.
        fixed: whether arguments that are None in `call` become constants.
        buffers: whether the graph reads the module's buffers. Otherwise results from buffers and
            sizes are constants, which a graph cannot hold, but a forward may change buffers.
        training: the mode to trace the forward for.
        foreign: functions to record as one node each, because they accept no proxies.
    """

    def __init__(
        self,
        call: Arguments | None,
        inlined: Mapping[str, bool],
        *,
        fixed: bool,
        buffers: bool = False,
        training: bool = False,
        foreign: Iterable[Foreign] = (),
    ) -> None:
        self.foreign = (*foreign,)
        wrapped = (*MAKERS.values(), *(f.function for f in self.foreign))
        super().__init__(autowrap_functions=wrapped)
        self._autowrap_search += [torch, *(module for f in self.foreign for module in f.holders)]
        self.call, self.inlined, self.fixed, self.training = call, inlined, fixed, training
        self.proxy_buffer_attributes, self.notes = buffers, Notes()
        self.values, self.contexts = self.notes.values, Contexts()
        self.computing = False  # while a node's value is computed, nothing is to be recorded

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace `root.forward`; restores the modes of `root` and of inlined children."""
        with ExitStack() as stack:
            for path in ("", *self.inlined):
                stack.enter_context(_flagged(root.get_submodule(path), Flag(self, path)))
            stack.enter_context(unscripted())
            stack.enter_context(counted(is_batch))
            stack.enter_context(recorded(self.foreign, self._record))
            stack.enter_context(Makers(self))
            stack.enter_context(self.contexts.watched())
            # A compiled helper is traced through, not compiled.
            stack.enter_context(torch._dynamo.config.patch(error_on_nested_fx_trace=False))
            return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Every child is a leaf, except those in `inlined`."""
        return module_qualified_name not in self.inlined

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wrap a node in a proxy with a concrete value."""
        return ValueProxy(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Record a node, and compute its value if the values of its inputs are known."""
        node = super().create_node(kind, *args, **kwargs)
        if node.name == "self":  # a child of that name: its variable would hide the module
            node._rename("self_value")
        path = self.scope.module_path
        if outer := [p for p, named in self.inlined.items() if named and under(path, p)]:
            node.meta["child"] = min(outer, key=len)
        if is_flag(node):
            self.values[node] = self.training
        elif self.call is not None and kind not in ("placeholder", "output"):
            inputs = node.all_input_nodes
            if all(n in self.values for n in inputs):
                try:
                    self._compute(node, inputs)
                except Exception:  # the forward may catch it and continue
                    self.graph.erase_node(node)
                    raise
                self.contexts.note(node, self.values[node], map(self.values.get, inputs))
        return node

    def create_arg(self, a: Any) -> Any:
        """Record a mapping with a class of its own, such as transformers' outputs, as one node.

        A NumPy number becomes a Python number, because generated code does not import NumPy.
        """
        if isinstance(a, np.generic):
            a = a.item()
        made = construction(a)
        return super().create_arg(a) if made is None else self.create_proxy(*made).node

    def note_overwritten(self, node: fx.Node, base: fx.Node) -> None:
        """Record that from now on `node` holds the current value of the tensor of `base`."""
        if isinstance(self.values.get(base), Tensor):
            self.notes.overwritten.setdefault(node, []).append(base)

    def value_of(self, node: fx.Node) -> Any:
        """The value of a node. Raises TypeError if it is not known."""
        if node not in self.values:
            raise TypeError(f"the value of `{node.name}` is not known")
        return self.values[node]

    def decided(self, node: fx.Node) -> Any:
        """The value of a node, for a decision about what is traced.

        Raises:
            TypeError: it is not known, or depends on a tensor's values, not on sizes and flags.
        """
        value = self.value_of(node)
        if node in self.notes.valued:
            raise TypeError(f"what `{node.name}` holds decides what its forward does")
        return value

    def is_batch(self, node: fx.Node) -> bool:
        """Whether a node's value is a tensor that depends on the forward's inputs."""
        return isinstance(self.values.get(node), Tensor) and depends_on_inputs(node)

    def is_size(self, node: fx.Node) -> bool:
        """Whether a node's value is a number that sizes of the forward's inputs decide."""
        number = type(self.values.get(node)) in (int, float)
        return number and node not in self.notes.valued and depends_on_inputs(node)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide a condition by sizes and flags, never by a tensor's values."""
        return bool(self.decided(obj.node))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Iterate over a tuple, list, dict or tensor; `check_graph` detects sizes fixed by this."""
        value = self.values.get(obj.node)
        if isinstance(value, Mapping):
            return iter(value)
        if isinstance(value, (tuple, list)) or (isinstance(value, Tensor) and value.ndim):
            return iter([obj[i] for i in range(len(value))])  # type: ignore[index]
        return super().iter(obj)

    def keys(self, obj: fx.Proxy) -> Any:
        """The keys of a dict, for `**`."""
        value = self.values.get(obj.node)
        return value.keys() if isinstance(value, Mapping) else super().keys(obj)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Record a call of a module, or run it while a value is computed.

        A module that the forward makes, such as a slice of an `nn.Sequential`, is traced through.
        """
        if self.computing or (self.submodule_paths and m not in self.submodule_paths):
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record an access to a parameter, or return it while a value is computed."""
        if self.computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Create one placeholder per parameter, with its value from `call`."""
        # fx reads the outer signature, so it fails on a forward wrapped by a decorator with
        # `*args, **kwargs`.
        assert isinstance(self.root, nn.Module)
        root_fn = forward_of(self.root)
        if self.call is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        taken = parameters(root_fn, self.call)
        values = [self._argument(parameter) for parameter in taken]

        def call(root: nn.Module, *values: Any) -> Any:
            places: list[Any] = []
            keywords: dict[str, Any] = {}
            for parameter, value in zip(taken, values, strict=True):
                if parameter.target.startswith("**"):
                    keywords |= value
                elif parameter.target.startswith("*"):
                    places += value
                elif parameter.by_place:
                    places.append(value)
                else:
                    keywords[parameter.name] = value
            return root_fn(root, *places, **keywords)

        return call, [self.root, *values]

    def _record(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function; record it as one node if it gets a proxy."""
        if self.computing or not has_proxy((args, kwargs)):
            return function(*args, **kwargs)
        return self.create_proxy("call_function", function, args, kwargs)

    def _argument(self, parameter: Parameter) -> Any:
        """A placeholder's proxy; for `*args` and `**kwargs`, constants as they were given."""
        proxy = self.create_proxy("placeholder", parameter.target, parameter.default, {})
        value = self.values[proxy.node] = map_aggregate(parameter.value, cloned)
        self._note_values(proxy.node)

        def part(key: int | str, of: Any) -> Any:
            return of if is_constant(of) else proxy[key]  # type: ignore[index]

        if parameter.target.startswith("**"):
            return {key: part(key, of) for key, of in value.items()}
        if parameter.target.startswith("*"):
            return [part(i, of) for i, of in enumerate(value)]
        return None if value is None and self.fixed else proxy

    def _compute(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        """Compute the value of a node, and note of which inputs it overwrote the tensor."""
        before = [(n, version_of(self.values[n])) for n in inputs]
        self.computing = True
        try:
            self.values[node] = self._run(node)
        finally:
            self.computing = False
        for base in [n for n, version in before if version_of(self.values[n]) != version]:
            assigned = node.target is operator.setitem and base is node.args[0]
            if assigned or are_one(self.values[node], self.values[base]):
                self.note_overwritten(node, base)
            elif node.target is not operator.setitem:
                self.notes.spoiled.setdefault(node, []).append(base)
        self._note_values(node)

    def _note_values(self, node: fx.Node) -> None:
        """Record whether a node's value depends on a tensor's values, not only on its size."""
        value, inputs = self.values[node], node.all_input_nodes
        given = node.op in ("placeholder", "get_attr")
        if not (given or any(n in self.notes.valued for n in inputs)):
            return
        if getattr(node.target, "__name__", node.target) in _SIZED:
            return
        read = node.op == "call_method" and node.target in ("item", "tolist")
        if (
            read
            or holds_tensor(value)
            or any(n in self.notes.valued and not holds_tensor(self.values[n]) for n in inputs)
        ):
            self.notes.valued.add(node)

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


@contextmanager
def _flagged(module: nn.Module, flag: Flag) -> Iterator[None]:
    training = module.training
    vars(module)["training"] = flag
    try:
        yield
    finally:
        module.training = training
