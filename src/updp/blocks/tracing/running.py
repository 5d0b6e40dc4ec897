"""The functions that run: Python's frames know the code alone, not the function it is of."""

from collections.abc import Iterator
from functools import cached_property, partial
from types import FrameType, FunctionType, MethodType
from typing import Any

from updp.blocks.paths import holder

_TRACERS = ("torch.fx", "updp.blocks")  # their frames are outside of what is traced
_WRAPPERS = (classmethod, staticmethod, property, cached_property, partial, MethodType)


def running_functions(frame: FrameType | None) -> list[FunctionType]:
    """Functions of a frame and of those around it, as far as they can be found by a name."""
    frames: list[FrameType] = []
    while frame is not None and not _is_tracer(frame):
        frames.append(frame)
        frame = frame.f_back
    codes = {each.f_code for each in frames}
    pending: list[Any] = [value for each in frames for value in _places(each)]
    found: dict[int, FunctionType] = {}
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        pending += _held(value)
        if isinstance(value, FunctionType) and value.__code__ in codes:
            found[id(value)] = value
    return [*found.values()]


def _is_tracer(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return holder(name, _TRACERS) is not None


def _places(frame: FrameType) -> Iterator[Any]:
    """What a frame's names stand for, and the methods and attributes of the objects among it."""
    module = frame.f_globals.get("__name__")
    for value in [*frame.f_globals.values(), *frame.f_locals.values()]:
        yield value
        kind = value if isinstance(value, type) else type(value)
        if kind.__module__ == module or value is frame.f_locals.get("self"):
            yield from (part for base in kind.__mro__ for part in vars(base).values())
            yield from getattr(value, "__dict__", {}).values()


def _held(value: Any) -> Iterator[Any]:
    """Functions that stand behind another one, as behind a decorator's."""
    if isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # a name without a value yet
                continue
        yield getattr(value, "__wrapped__", None)
    elif isinstance(value, _WRAPPERS):
        yield from (getattr(value, name, None) for name in ("__func__", "fget", "func"))
