"""Dotted names of modules, and tests whether one lies inside another."""

from collections.abc import Iterable


def under(name: str, parent: str) -> bool:
    """Whether module path `name` equals `parent` or lies inside it; the root holds all paths."""
    return not parent or name == parent or name.startswith(f"{parent}.")


def nested(a: str, b: str) -> bool:
    """Whether one of two module paths equals the other or lies inside it."""
    return under(a, b) or under(b, a)


def meet(some: Iterable[str], others: Iterable[str]) -> bool:
    """Whether a module path in `some` and one in `others` are nested."""
    known = [*others]
    return any(nested(a, b) for a in some for b in known)
