"""Functions that accept no proxies: einops', scripted ones, those that check types.

fx calls a function with proxies and records the calls inside it. A function that looks at its
arguments more closely fails; it is then found by the traceback and recorded as one node instead.
"""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import partial
from itertools import pairwise
from traceback import walk_tb
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from updp.blocks.paths import holder

_OURS = ("torch.fx", __name__.rpartition(".")[0])  # frames of tracing itself


@dataclass(frozen=True)
class Foreign:
    """A function, and the modules that have it as an attribute."""

    function: Callable[..., Any]
    holders: tuple[ModuleType, ...]


def foreign_function(error: BaseException) -> Foreign | None:
    """The function in which a trace failed, if it can be recorded as one node.

    It is the first one from another package than its caller, else the outermost one. It must be a
    function of a module, not a method, called with proxies and without modules as arguments.
    """
    frames = [f for f, _ in walk_tb(error.__traceback__) if not _is_ours(f)]
    found: list[Foreign] = []
    for caller, frame in pairwise(frames):
        function = _function_of(frame)
        if function is None or not _takes_proxies(frame):
            continue
        found.append(Foreign(function, _holders(function, caller)))
        if _package(caller) != _package(frame):
            return found[-1]
    return found[0] if found else None


@contextmanager
def unscripted() -> Iterator[None]:
    """Context in which a scripted function, called with a proxy, runs as its Python original."""
    kind = torch._C.ScriptFunction
    original = kind.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        written = getattr(self, "_torchdynamo_inline", None)
        if written is not None and has_proxy((args, kwargs)):
            return written(*args, **kwargs)
        return original(self, *args, **kwargs)

    kind.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.__call__ = original  # type: ignore[method-assign]


@contextmanager
def recorded(foreign: Iterable[Foreign], record: Callable[..., Any]) -> Iterator[None]:
    """Context in which calls of foreign functions that fx does not wrap go to `record`.

    These are functions whose name begins with an underscore, such as the mask helpers of torch's
    own transformer.
    """
    places = [
        (vars(module), name, each.function)
        for each in foreign
        for module in each.holders
        for name, value in vars(module).items()
        if name.startswith("_") and value is each.function
    ]
    for names, name, function in places:
        names[name] = partial(record, function)
    try:
        yield
    finally:
        for names, name, function in places:
            names[name] = function


def has_proxy(value: Any) -> bool:
    """Whether nested tuples, lists and dicts hold a proxy."""
    found: list[Any] = []
    map_aggregate(value, lambda v: found.append(v) if isinstance(v, fx.Proxy) else None)
    return bool(found)


def construction(value: Any) -> tuple[str, Any, tuple[Any, ...], dict[str, Any]] | None:
    """The call to record for a mapping with proxies; None for a plain dict or anything else.

    Such a mapping is an `OrderedDict`, or also a dataclass, as transformers' outputs are.
    """
    if not isinstance(value, dict) or type(value) is dict or not has_proxy(dict(value)):
        return None
    if type(value) is OrderedDict:
        return "call_function", OrderedDict, ([*value.items()],), {}
    if is_dataclass(value):
        return "call_function", type(value), (), dict(value)
    return None


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return holder(name, _OURS) is not None


def _function_of(frame: FrameType) -> Callable[..., Any] | None:
    """The module-level function that a frame belongs to; None for methods and inner functions."""
    function = frame.f_globals.get(frame.f_code.co_name)
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return function if code is frame.f_code else None


def _takes_proxies(frame: FrameType) -> bool:
    names, rest, keywords, values = inspect.getargvalues(frame)
    given = [values.get(name) for name in (*names, rest, keywords) if name]
    return has_proxy(given) and not any(isinstance(value, nn.Module) for value in given)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _holders(function: Callable[..., Any], caller: FrameType) -> tuple[ModuleType, ...]:
    """Modules in which the caller may look up the function: its own, and those it names."""
    own = sys.modules.get(caller.f_globals.get("__name__", ""))
    found = [own, *(v for v in caller.f_globals.values() if isinstance(v, ModuleType))]
    path = function.__module__
    while path:
        found.append(sys.modules.get(path))
        path = path.rpartition(".")[0]
    return tuple(m for m in dict.fromkeys(found) if m is not None)
