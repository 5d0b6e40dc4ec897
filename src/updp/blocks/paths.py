"""Dotted names of modules, and whether one lies in another."""

from collections.abc import Iterable


def under(name: str, parent: str) -> bool:
    """Whether the module path `name` is `parent` or lies in it; all paths lie in the root."""
    return not parent or name == parent or name.startswith(f"{parent}.")


def nested(a: str, b: str) -> bool:
    """Whether one of two module paths lies in the other."""
    return under(a, b) or under(b, a)


def meet(some: Iterable[str], others: Iterable[str]) -> bool:
    """Whether a module path of `some` lies in one of `others`, or one of these in it."""
    known = [*others]
    return any(nested(a, b) for a in some for b in known)
