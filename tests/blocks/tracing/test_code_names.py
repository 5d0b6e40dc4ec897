from __future__ import annotations

import pytest

from updp.blocks.tracing.code_names import with_calls_of


def several(value: object, kind: type = int) -> object:
    assert isinstance(value, int)
    assert kind is int
    return [int(value), int("ff", 16), *(int(value) for _ in range(2)), [*map(int, "7")], int]


def plain(value: object) -> bool:
    return isinstance(value, int)


def many(names: int) -> object:
    """A function that reads `names` other globals before it calls `int`."""
    code = "\n".join(f"    if not value: v{i}" for i in range(names))
    made: dict[str, object] = {}
    exec(f"def function(value):\n{code}\n    return int(value)", made)
    return made["function"]


def run(function: object) -> object:
    code = function.__code__  # type: ignore[attr-defined]
    changed = with_calls_of(code, "int", "__other__")
    names = {"__other__": lambda *args: ("called", *args), "__builtins__": __builtins__}
    other = type(several)(changed, names, argdefs=(int,))
    return other(3)


def test_calls_alone_go_to_the_other_name() -> None:
    three = ("called", 3)
    assert run(several) == [three, ("called", "ff", 16), three, three, [7], int]
    assert several(3) == [3, 255, 3, 3, [7], int]


def test_code_without_such_a_call_is_the_same_object() -> None:
    assert with_calls_of(plain.__code__, "int", "__other__") is plain.__code__


@pytest.mark.parametrize(
    ("names", "found"), [(100, ("called", 3)), (126, ("called", 3)), (127, 3), (300, ("called", 3))]
)
def test_code_with_many_names_is_changed_where_there_is_a_place(names: int, found: object) -> None:
    assert run(many(names)) == found
