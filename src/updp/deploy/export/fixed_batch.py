"""Find the line of a forward that turns the batch size into a constant.

torch.export says only at its end that the batch axis became a constant, and not where.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from updp.blocks.modules import UserCodeError, try_user_code

_NOT_THE_USERS = str(Path(torch.__file__).parent), str(Path(__file__).parents[2])


def why_fixed(export: Callable[[], object]) -> str:
    """What to change in the code that keeps `export` from a dynamic batch; empty if unknown.

    `export` is a failing call of torch.export in which the batch is the only dynamic axis.
    """
    with _constants() as lines, suppress(UserCodeError):
        try_user_code(export)
    return next((_advice(line) for line in lines), "")


def _advice(line: traceback.FrameSummary) -> str:
    code = shorten(line.line or "", 70, placeholder="...")
    return (
        f"line {line.lineno} of {Path(line.filename).name} ({code}) is for one batch size only: "
        "take x.shape[0] without int(), or -1 in a reshape, and no loop over the batch"
    )


@contextmanager
def _constants() -> Iterator[list[traceback.FrameSummary]]:
    """Context that collects the lines which make a constant of a symbolic size, in order.

    Patched on the class, for torch keeps the lines of its guards to itself. It collects none where
    another version of torch has no such method.
    """
    lines: list[traceback.FrameSummary] = []
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


def _users_line() -> list[traceback.FrameSummary]:
    """The innermost running line that is neither torch's nor ours; empty if there is none."""
    inside = takewhile(lambda f: f.name != why_fixed.__name__, traceback.extract_stack()[::-1])
    return [f for f in inside if not f.filename.startswith(_NOT_THE_USERS)][:1]
