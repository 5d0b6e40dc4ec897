from __future__ import annotations

import functools
import sys
from types import FunctionType

from updp.blocks.tracing.running import running_functions


def running() -> list[str]:
    found = running_functions(sys._getframe(1))
    return sorted(f.__qualname__ for f in found if f.__module__ == __name__)


def twice(function: FunctionType) -> object:
    @functools.wraps(function)
    def inner(*args: object) -> object:
        return function(*args)

    return inner


@twice
def wrapped() -> list[str]:
    return running()


class Methods:
    def plain(self) -> list[str]:
        return running()

    @staticmethod
    def static() -> list[str]:
        return running()

    @classmethod
    def of_class(cls) -> list[str]:
        return running()

    @property
    def read(self) -> list[str]:
        return running()


class Inheriting(Methods):
    def __init__(self) -> None:
        self.kept = lambda: running()


def test_functions_are_found_by_the_names_of_their_frames() -> None:
    own, one = "test_functions_are_found_by_the_names_of_their_frames", Inheriting()
    assert wrapped() == sorted([own, "wrapped", "wrapped"])
    assert Methods().plain() == sorted([own, "Methods.plain"])
    assert one.static() == sorted([own, "Methods.static"])
    assert one.of_class() == sorted([own, "Methods.of_class"])
    assert one.read == sorted([own, "Methods.read"])
    assert one.kept() == sorted([own, "Inheriting.__init__.<locals>.<lambda>"])
