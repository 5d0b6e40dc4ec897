"""Make functions stored on a copied module, such as hooks, use the copy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

_DEPTH = 2  # levels of containers to search in a module's attributes


def rebind(copied: nn.Module, copies: Mapping[int, Any]) -> None:
    """Replace functions on a copied module that use objects which were copied with it.

    `copy.deepcopy` does not copy functions. So a hook that stores features in a dictionary of its
    model, or a wrapped forward, would still use the objects of the original.

    Args:
        copied: the copy, changed in place.
        copies: the copies by the `id` of the originals: the memo of `copy.deepcopy`.
    """
    follower = _Follower(copies)
    for part in copied.modules():
        follower.replace_inside(vars(part), _DEPTH)


class _Follower:
    """Finds the copy's counterpart of a function of the original."""

    def __init__(self, copies: Mapping[int, Any]) -> None:
        self.copies = copies
        self.functions: dict[int, FunctionType] = {}
        self.cells: dict[int, CellType] = {}  # copies share variables, too

    def replace_inside(self, values: Any, depth: int) -> None:
        """Replace functions in a dictionary or list, also in nested ones."""
        if id(values) in self.copies:  # shared with the original
            return
        for key, value in [*(values.items() if isinstance(values, dict) else enumerate(values))]:
            if isinstance(value, (FunctionType, MethodType, partial)):
                if (other := self.follow(value)) is not value:
                    values[key] = other
            elif isinstance(value, (dict, list)) and depth:
                self.replace_inside(value, depth - 1)

    def follow(self, value: Any) -> Any:
        """The copy's counterpart of `value`; mostly `value` itself."""
        if id(value) in self.copies:
            return self.copies[id(value)]
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            function, owner = self.follow(value.__func__), self.follow(value.__self__)
            same = function is value.__func__ and owner is value.__self__
            return value if same else MethodType(function, owner)
        if isinstance(value, partial):
            function, args = self.follow(value.func), [self.follow(arg) for arg in value.args]
            keywords = {name: self.follow(arg) for name, arg in value.keywords.items()}
            pairs = zip(
                [*value.args, *value.keywords.values()], [*args, *keywords.values()], strict=True
            )
            same = function is value.func and all(old is new for old, new in pairs)
            return value if same else partial(function, *args, **keywords)
        return value

    def _function(self, function: FunctionType) -> FunctionType:
        """The function on copies of the objects in its closure and its globals; itself if none."""
        if id(function) in self.functions:
            return self.functions[id(function)]
        code, outer = function.__code__, function.__globals__
        named = {
            n: self.copies[id(outer[n])] for n in code.co_names if id(outer.get(n)) in self.copies
        }
        cells = function.__closure__ or ()
        made = FunctionType(
            code,
            {**outer, **named} if named else outer,
            function.__name__,
            function.__defaults__,
            tuple(self.cells.setdefault(id(cell), CellType()) for cell in cells),
        )
        self.functions[id(function)] = made  # set before its own variables are followed
        changed = bool(named)
        for cell in cells:
            try:
                held = cell.cell_contents
            except ValueError:  # not yet assigned
                continue
            self.cells[id(cell)].cell_contents = copied = self.follow(held)
            changed |= copied is not held and held is not function
        if not changed:
            self.functions[id(function)] = function
            return function
        made.__kwdefaults__, made.__doc__ = function.__kwdefaults__, function.__doc__
        made.__qualname__, made.__module__ = function.__qualname__, function.__module__
        vars(made).update(vars(function))
        return made
