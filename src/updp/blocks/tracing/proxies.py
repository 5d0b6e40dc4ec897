"""The proxies of a trace: what a forward gets in place of its tensors, sizes and flags."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.proxy import Attribute

from updp.blocks.tracing import whole_numbers

if TYPE_CHECKING:
    from updp.blocks.tracing.tracer import Tracer

_IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
# For these NumPy functions a NumPy number defers to a tensor at its right.
_LEFT_TO_TENSORS = {
    np.add: operator.add,
    np.subtract: operator.sub,
    np.multiply: operator.mul,
    np.divide: operator.truediv,
    np.power: operator.pow,
}


class ValueProxy(fx.Proxy):
    """A proxy whose concrete value can be read: sizes can be compared, counted, iterated.

    `x += y` and `x[i] = y` are recorded, so that later uses of `x` read the new value. NumPy's
    functions are recorded through NumPy's own protocols.
    """

    tracer: Tracer

    def __getattr__(self, name: str) -> _Attribute:
        if name.startswith("__array"):  # else NumPy takes a proxy for an array
            raise AttributeError(name)
        return _Attribute(self, name)

    def __len__(self) -> int:
        return len(self.tracer.value_of(self.node))

    def __index__(self) -> int:
        return operator.index(self.tracer.decided(self.node))

    def __int__(self) -> int:
        value = self.tracer.decided(self.node)
        if self.tracer.is_size(self.node):
            whole_numbers.current().note("int", sys._getframe(1))
        return int(value)

    def __round__(self, digits: Any = None) -> Any:
        return self._whole(round, *(() if digits is None else (digits,)))

    def __floor__(self) -> Any:
        return self._whole(math.floor)

    def __ceil__(self) -> Any:
        return self._whole(math.ceil)

    def __trunc__(self) -> Any:
        return self._whole(math.trunc)

    def _whole(self, function: Callable[..., Any], *digits: Any) -> Any:
        """What `function` makes of a number: a node, or a constant that is noted."""
        if self.tracer.is_size(self.node):
            calls = whole_numbers.current()
            if calls.as_nodes:
                return self.tracer.create_proxy("call_function", function, (self, *digits), {})
            calls.note(function.__name__, sys._getframe(2))
        return function(self.tracer.decided(self.node), *digits)

    def __float__(self) -> float:
        return float(self.tracer.decided(self.node))

    def __contains__(self, item: object) -> bool:
        return item in self.tracer.decided(self.node)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __array_ufunc__(self, function: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method != "__call__":
            return NotImplemented
        if isinstance(args[0], np.generic) and function in _LEFT_TO_TENSORS and not kwargs:
            return _LEFT_TO_TENSORS[function](args[0].item(), self)
        return self.tracer.create_proxy("call_function", function, args, kwargs)

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        return self.tracer.create_proxy("call_function", function, args, kwargs)


def is_batch(value: Any) -> bool:
    """Whether a value is a proxy of a tensor that depends on the input."""
    return isinstance(value, ValueProxy) and value.tracer.is_batch(value.node)


def depends_on_inputs(node: fx.Node) -> bool:
    """Whether a node's value depends on the forward's inputs, or on their sizes alone."""
    pending, seen = [node], {node}
    while pending:
        if (one := pending.pop()).op == "placeholder":
            return True
        pending += (new := {*one.all_input_nodes} - seen)
        seen |= new
    return False


def to_int(*args: Any, **kwargs: Any) -> Any:
    """`int(...)`, but a node for a size, of a function that torch's exporters read of sizes."""
    size = args[0] if len(args) == 1 and not kwargs else None
    if isinstance(size, ValueProxy) and size.tracer.is_size(size.node):
        return size.tracer.create_proxy("call_function", torch.sym_int, args, {})
    return int(*args, **kwargs)


def _in_place(name: str) -> Callable[[ValueProxy, Any], Any]:
    function = getattr(operator, name if hasattr(operator, name) else f"{name}_")

    def overwrite(self: ValueProxy, other: Any) -> Any:
        result = function(self, other)
        self.tracer.note_overwritten(result.node, self.node)
        return result

    return overwrite


for _name in _IN_PLACE:
    setattr(ValueProxy, f"__i{_name}__", _in_place(_name))


class _Attribute(ValueProxy, Attribute):
    """An attribute of a proxy, such as `x.shape`; fx creates its node on first use."""


class Flag(ValueProxy):
    """A module's `training` flag: a node if used as an argument, a value in conditions."""

    def __init__(self, tracer: Tracer, path: str) -> None:
        self.tracer, self._path = tracer, path
        self._made: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """The node that reads the module's flag; created on first use."""
        if self._made is None:
            target = f"{self._path}.training".lstrip(".")
            self._made = self.tracer.create_node("get_attr", target, (), {})
        return self._made

    def __bool__(self) -> bool:
        return self.tracer.training


def is_flag(node: fx.Node) -> bool:
    """Whether the node reads the training flag of a module."""
    return node.op == "get_attr" and str(node.target).rpartition(".")[2] == "training"


def set_modes(part: fx.GraphModule, training: bool) -> None:
    """Set the flags that a part of a block reads, but not the modes of the block's modules."""
    part.training = training
    for node in filter(is_flag, part.graph.nodes):
        owner: nn.Module = part.get_submodule(str(node.target).rpartition(".")[0])
        owner.training = training
