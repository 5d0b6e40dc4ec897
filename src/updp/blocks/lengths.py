"""`len` of a batch as a size that a graph can hold."""

import builtins
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def counted(is_batch: Callable[[Any], bool]) -> Iterator[None]:
    """Context in which `len(x)` is `x.shape[0]` where `is_batch(x)`, and so perhaps no number.

    Python lets `__len__` return numbers only, with which a graph would hold for one batch size.
    """
    original = builtins.len

    def length(of: Any, /) -> Any:
        return of.shape[0] if is_batch(of) else original(of)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = original
