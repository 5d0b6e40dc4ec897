"""Whole numbers that a forward makes of sizes, by `int`, `round`, `math.floor` or `math.ceil`.

They are constants of a graph. Where it does not hold for another number of samples for this, it is
traced again with nodes in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from updp.blocks.tracing.int_calls import Namespace, int_calls


@dataclass
class WholeNumbers:
    """The calls of one trace that made a constant of a size."""

    namespaces: dict[int, Namespace] = field(default_factory=dict)  # of modules that call `int`
    calls: dict[str, None] = field(default_factory=dict)  # every call, in words
    as_nodes: bool = False  # whether they now make nodes instead

    def note(self, name: str, frame: FrameType) -> None:
        """Note a call of `name` in `frame`."""
        self.calls[f"`{name}(...)` in line {frame.f_lineno} of `{frame.f_code.co_name}`"] = None
        if name == "int":
            self.namespaces[id(frame.f_globals)] = frame.f_globals

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
def made_nodes(found: WholeNumbers, convert: Callable[..., Any]) -> Iterator[WholeNumbers]:
    """Context in which the noted calls make nodes: those of `int` go to `convert`.

    Gives the calls that make constants all the same, as of `int` by another name.
    """
    with int_calls(found.namespaces.values(), convert), _set(WholeNumbers(as_nodes=True)) as left:
        yield left


@contextmanager
def _set(value: WholeNumbers) -> Iterator[WholeNumbers]:
    global _current
    before, _current = _current, value
    try:
        yield value
    finally:
        _current = before
