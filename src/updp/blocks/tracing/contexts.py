"""Contexts of a forward: parts that run without gradients, or in a precision of their own.

A graph has no `with`. So each node notes what was entered as it was recorded, and the code that is
generated of a graph enters the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from difflib import SequenceMatcher
from itertools import groupby
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from updp.blocks.tracing.proxies import Flag

_KEY = "within"  # in a node's meta: the code of its contexts, outermost first
_ASKED = "_updp_enabled"  # of an autocast that disabled itself, for its device is not there
_OFF = ", enabled=False)"  # how the code of an autocast ends that disables one around it
_PRECISION = "torch.autocast("
_BY_MODE = "torch.set_grad_enabled("  # it takes what is on or off, often `self.training`
_NAMED = re.compile(r"    (\w+)\b.* = ")
_GRADIENTS = (torch.no_grad, torch.enable_grad, torch.inference_mode)


class Contexts:
    """The contexts in which a forward is at present, outermost first."""

    def __init__(self) -> None:
        self._inside: list[tuple[Any, str]] = []
        self._is_noting = True  # torch.no_grad calls torch.set_grad_enabled
        self._thread = get_ident()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Context in which those that a forward enters are noted."""
        with ExitStack() as stack:
            for kind in (*_GRADIENTS, torch.autocast):
                stack.enter_context(self._noted(kind, "__enter__", self._enter))
                stack.enter_context(self._noted(kind, "__exit__", self._leave))
            stack.enter_context(self._noted(torch.autocast, "__init__", _keep_what_is_asked))
            # It acts as it is made, and may be called without a `with`.
            stack.enter_context(self._noted(torch.set_grad_enabled, "__init__", self._enter))
            stack.enter_context(self._noted(torch.set_grad_enabled, "__exit__", self._leave))
            yield

    def note(self, node: fx.Node, value: Any, inputs: Iterable[Any]) -> None:
        """Note the contexts of a node that computes numbers of numbers, or calls a module."""
        computes = node.op == "call_module" or any(map(_holds_numbers, inputs))
        if computes and _holds_numbers(value):
            set_contexts(node, tuple(code for _, code in self._inside))

    @contextmanager
    def _noted(self, kind: Any, name: str, note: Callable[..., None]) -> Iterator[None]:
        """Context in which `note` is called with the arguments of each call of a method."""
        original = vars(kind)[name]

        def method(*args: Any, **kwargs: Any) -> Any:
            if not self._is_noting or get_ident() != self._thread:
                return original(*args, **kwargs)
            self._is_noting = False
            try:
                note(*args, **kwargs)
                return original(*map(_decided, args), **{k: _decided(v) for k, v in kwargs.items()})
            finally:
                self._is_noting = True

        setattr(kind, name, method)
        try:
            yield
        finally:
            setattr(kind, name, original)

    def _enter(self, context: Any, *args: Any, **kwargs: Any) -> None:
        self._inside.append((context, _code_of(context, *args, **kwargs)))

    def _leave(self, context: Any, *error: Any) -> None:
        self._inside[:] = [each for each in self._inside if each[0] is not context]


def _decided(value: Any) -> Any:
    """The value of `self.training` for its proxy, which older versions of torch do not take."""
    return bool(value) if isinstance(value, Flag) else value


def contexts_of(node: fx.Node) -> tuple[str, ...]:
    """The code of the contexts in which a node computes, outermost first."""
    found: tuple[str, ...] = node.meta.get(_KEY, ())
    return found


def set_contexts(node: fx.Node, contexts: tuple[str, ...]) -> None:
    """Let a node compute in other contexts."""
    node.meta[_KEY] = contexts


def has_contexts(node: fx.Node) -> bool:
    """Whether it is known in which contexts a node computes, if in any."""
    return _KEY in node.meta


def forget_switches_of_evaluation(graph: fx.Graph, trained: fx.Graph) -> None:
    """Forget where a forward, traced as `graph`, switches gradients otherwise than in training.

    `torch.set_grad_enabled(self.training)` has no effect in training, and in evaluation none on
    values. `trained` is the forward as traced in training. Where it has no such node, only a switch
    that may be given the mode is forgotten, not `torch.no_grad()`. A precision is always kept.
    """
    nodes, others = [*graph.nodes], [*trained.nodes]
    # By what they call, in order: more nodes in training, as for noise, shift the names of others.
    calls, calls_trained = ([(n.op, n.target) for n in part] for part in (nodes, others))
    same = SequenceMatcher(None, calls, calls_trained, autojunk=False).get_matching_blocks()
    in_training = {nodes[m.a + i]: others[m.b + i] for m in same for i in range(m.size)}
    for node in nodes:
        contexts, other = contexts_of(node), in_training.get(node)
        if other is None or not has_contexts(other):
            kept = [c for c in contexts if not c.startswith(_BY_MODE)]
        else:
            kept = [c for c in contexts if c in contexts_of(other) or c.startswith(_PRECISION)]
        if len(kept) < len(contexts):
            set_contexts(node, tuple(kept))


def context_of_some(graph: fx.Graph, names: Collection[str]) -> str:
    """A context of some nodes of those that compute numbers, not of all; empty for none.

    Where autocast is off does not count: what replaces such nodes has no need of it.
    """
    known = [contexts_of(n) for n in graph.nodes if n.name in names and has_contexts(n)]
    found = {tuple(c for c in contexts if not c.endswith(_OFF)) for contexts in known}
    return max(found)[-1] if len(found) > 1 else ""


def autocast_in(graph: fx.Graph, device: str) -> str:
    """An autocast for a type of device in which a node computes; empty if there is none."""
    inside = (code for node in graph.nodes for code in contexts_of(node))
    own = (c for c in inside if c.startswith(f"torch.autocast({device!r}") and not c.endswith(_OFF))
    return next(own, "").replace(", enabled=True", "")


def within_contexts(source: str, graph: fx.Graph) -> str:
    """The code that torch.fx made of a graph, with what nodes compute in their contexts."""
    known = {node.name: contexts_of(node) for node in graph.nodes}

    def contexts(line: str) -> tuple[str, ...]:
        named = _NAMED.match(line)
        return known.get(named[1], ()) if named else ()

    lines: list[str] = []
    for inside, part in groupby(source.splitlines(keepends=True), contexts):
        if inside:
            lines.append(f"    with {', '.join(inside)}:\n")
        lines += [f"{'    ' if inside else ''}{line}" for line in part]
    return "".join(lines)


def _keep_what_is_asked(
    context: Any, device_type: str, dtype: Any = None, enabled: bool = True, *_: Any, **__: Any
) -> None:
    setattr(context, _ASKED, enabled)


def _code_of(context: Any, mode: Any = None) -> str:
    """Code that makes a context anew."""
    if isinstance(context, torch.set_grad_enabled):
        return f"torch.set_grad_enabled({bool(mode)})"
    if isinstance(context, torch.inference_mode):
        return f"torch.inference_mode({bool(context.mode)})"
    if isinstance(context, torch.autocast):
        enabled = bool(getattr(context, _ASKED, context._enabled))
        return f"torch.autocast({context.device!r}, {context.fast_dtype}, enabled={enabled})"
    return "torch.no_grad()" if isinstance(context, torch.no_grad) else "torch.enable_grad()"


def _holds_numbers(value: Any) -> bool:
    found: list[bool] = []
    map_aggregate(value, lambda v: found.append(isinstance(v, Tensor) and v.is_floating_point()))
    return any(found)
