"""Whole numbers that a forward makes of sizes, by `int`, `round`, `math.floor` or `math.ceil`.

Python lets `__int__` return numbers only, so that they are constants of a graph. Where a graph
does not hold for another number of samples for this, it is traced again with nodes in their place.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType, FunctionType
from typing import Any

from updp.blocks.tracing.code_names import with_calls_of
from updp.blocks.tracing.running import running_functions

_NAME = "__updp_int__"  # what calls of `int` read instead while they make nodes


@dataclass
class WholeNumbers:
    """The calls of one trace that made a constant of a size."""

    functions: dict[FunctionType, None] = field(default_factory=dict)  # some call `int`
    calls: dict[str, None] = field(default_factory=dict)  # every call, in words
    as_nodes: bool = False  # whether they now make nodes instead

    def note(self, name: str, frame: FrameType | None) -> None:
        """Note a call of `name` in `frame`."""
        if frame is None:
            return
        self.calls[f"`{name}(...)` in line {frame.f_lineno} of `{frame.f_code.co_name}`"] = None
        if name != "int":
            return
        # A function in a function is made anew by each call of the outer one.
        self.functions |= dict.fromkeys(running_functions(frame))

    def describe(self) -> str:
        """What makes constants of sizes, in words, to follow a reason; empty if nothing does."""
        return f": {next(iter(self.calls))} makes a constant of a size" if self.calls else ""


_current = WholeNumbers()


def current() -> WholeNumbers:
    """The calls of the trace that runs."""
    return _current


@contextmanager
def noted() -> Iterator[WholeNumbers]:
    """Context in which calls that make a constant of a size are noted."""
    with _set(WholeNumbers()) as found:
        yield found


@contextmanager
def made_nodes(found: WholeNumbers, convert: Callable[..., Any]) -> Iterator[None]:
    """Context in which the noted calls make nodes: those of `int` go to `convert`.

    Only calls change: elsewhere `int` stays the type, as in `isinstance(x, int)`.
    """
    before: list[tuple[FunctionType, CodeType]] = []
    for function in found.functions:
        changed = with_calls_of(code := function.__code__, "int", _NAME)
        if changed is not code and "int" not in function.__globals__:
            before.append((function, code))
            function.__code__ = changed
    vars(builtins)[_NAME] = convert
    try:
        with _set(WholeNumbers(as_nodes=True)):
            yield
    finally:
        del vars(builtins)[_NAME]
        for function, code in before:
            function.__code__ = code


@contextmanager
def _set(value: WholeNumbers) -> Iterator[WholeNumbers]:
    global _current
    before, _current = _current, value
    try:
        yield value
    finally:
        _current = before
