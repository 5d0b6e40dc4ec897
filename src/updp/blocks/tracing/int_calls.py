"""Let the calls of `int` in a module's code go to another function, for a while.

Python lets `__int__` return numbers only, so that nothing symbolic comes out of `int(...)`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

Namespace = dict[str, Any]  # the names of a module


@contextmanager
def int_calls(namespaces: Iterable[Namespace], convert: Callable[..., Any]) -> Iterator[None]:
    """Context in which calls of `int` go to `convert`, in modules without an own `int`."""
    changed = [*{id(names): names for names in namespaces if "int" not in names}.values()]
    for names in changed:
        names["int"] = _calling(convert)
    try:
        yield
    finally:
        for names in changed:
            del names["int"]


def _calling(convert: Callable[..., Any]) -> type:
    """A type that is `int` to `isinstance`, `issubclass` and `==`; a call of it is `convert`'s."""

    class Calling(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return convert(*args, **kwargs)

        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, int)

        def __subclasscheck__(cls, kind: type) -> bool:
            return issubclass(kind, int)

        def __eq__(cls, other: object) -> bool:
            return other is int or other is cls

        def __hash__(cls) -> int:
            return hash(int)

    return Calling("int", (int,), {})
