"""Dotted names of modules, and tests whether one lies inside another."""

from collections.abc import Iterable, Mapping

from torch import nn


def under(name: str, parent: str) -> bool:
    """Whether module path `name` equals `parent` or lies inside it; the root holds all paths."""
    return not parent or name == parent or name.startswith(f"{parent}.")


def holder(name: str, parents: Iterable[str]) -> str | None:
    """The first of `parents` that the module path `name` equals or lies inside; None if none."""
    return next((parent for parent in parents if under(name, parent)), None)


def within(name: str, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module at a path that is one of `modules`, by path, or inside one; None if neither."""
    if (parent := holder(name, modules)) is None:
        return None
    return modules[parent].get_submodule(name.removeprefix(parent).lstrip("."))


def nested(a: str, b: str) -> bool:
    """Whether one of two module paths equals the other or lies inside it."""
    return under(a, b) or under(b, a)


def meet(some: Iterable[str], others: Iterable[str]) -> bool:
    """Whether a module path in `some` and one in `others` are nested."""
    known = [*others]
    return any(nested(a, b) for a in some for b in known)
