"""Find the lines of a forward that turn the batch size into a constant.

torch.export says only at its end that the batch axis became a constant, and not where.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from traceback import walk_stack
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from updp.blocks.modules import UserCodeError, try_user_code
from updp.blocks.tracing.int_calls import Namespace

_NOT_THE_USERS = Path(torch.__file__).parent, Path(__file__).parents[2]


@dataclass(frozen=True)
class ConstantLine:
    """A line of a user's code that makes a constant of a size, and the names of its module."""

    summary: traceback.FrameSummary
    names: Namespace

    @property
    def advice(self) -> str:
        """What to change in the line."""
        code = shorten(self.summary.line or "", 70, placeholder="...")
        return (
            f"line {self.summary.lineno} of {Path(self.summary.filename).name} ({code}) is for one "
            "batch size only: take x.shape[0] as it is, or -1 in a reshape, and no loop over "
            "the batch"
        )


def constant_lines(export: Callable[[], object]) -> list[ConstantLine]:
    """The lines that keep `export` from a dynamic batch, in order, as far as they can be found.

    `export` is a failing call of torch.export in which the batch is the only dynamic axis.
    """
    with _constants() as lines, suppress(UserCodeError):
        try_user_code(export)
    return lines


def symbolic_int(*args: Any, **kwargs: Any) -> Any:
    """`int(...)`, but a symbol for a size that torch.export leaves open."""
    if len(args) == 1 and isinstance(args[0], torch.SymInt | torch.SymFloat):
        return torch.sym_int(args[0])
    return int(*args, **kwargs)


@contextmanager
def _constants() -> Iterator[list[ConstantLine]]:
    """Context that collects the lines which make a constant of a symbolic size, in order.

    Patched on the class, for torch keeps the lines of its guards to itself. It collects none where
    another version of torch has no such method.
    """
    lines: list[ConstantLine] = []
    original = getattr(ShapeEnv, "_set_replacement", None)
    if original is None:
        yield lines
        return

    def replace(self: ShapeEnv, symbol: Any, by: Any, msg: str) -> None:
        if by.is_Integer:
            lines.extend(_users_line())
        original(self, symbol, by, msg)

    ShapeEnv._set_replacement = replace  # type: ignore[assignment, method-assign]
    try:
        yield lines
    finally:
        ShapeEnv._set_replacement = original  # type: ignore[method-assign]


def _users_line() -> list[ConstantLine]:
    """The innermost running line that is neither torch's nor ours; empty if there is none."""
    inside = takewhile(lambda f: f[0].f_code is not constant_lines.__code__, walk_stack(None))
    for frame, number in inside:
        if any(map(Path(frame.f_code.co_filename).is_relative_to, _NOT_THE_USERS)):
            continue
        (summary,) = traceback.StackSummary.extract([(frame, number)])
        return [ConstantLine(summary, frame.f_globals)]
    return []
