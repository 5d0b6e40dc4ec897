"""Record which attributes of a block the rest of the model reads in a forward."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from updp.blocks.modules import UserCodeError, call_user_code
from updp.blocks.nested import call
from updp.blocks.repeatable import RecordedRun

_SPECIAL = {"__len__": "its length", "__iter__": "iteration", "__getitem__": "an index"}
_INNER = "torch.nn.modules."  # reads inside a module's own torch methods say nothing new


def what_is_read(model: nn.Module, block: nn.Module, run: RecordedRun) -> str:
    """Attributes of `block` that `model` reads besides calling it, in words; may be empty."""
    with suppress(TypeError), _watched(block) as names, torch.no_grad():  # it may have slots
        with suppress(UserCodeError):
            call_user_code(call, model, run.images.clone())
        return f" (it reads {', '.join(dict.fromkeys(names))})" if names else ""
    return ""


@contextmanager
def _watched(block: nn.Module) -> Iterator[list[str]]:
    """Context that lists which attributes of a block are read from outside its own forward.

    Meanwhile the block has a subclass as its class, because hooks do not see attributes.
    """
    names: list[str] = []
    kind: Any = type(block)
    depth = 0

    def called(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        depth += 1
        try:
            return kind.__call__(self, *args, **kwargs)
        finally:
            depth -= 1

    def attribute(self: nn.Module, name: str) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if not depth and not name.startswith("_") and not caller.startswith(_INNER):
            names.append(name)
        return kind.__getattribute__(self, name)

    def special(method: str, word: str) -> Any:
        def read(self: nn.Module, *args: Any) -> Any:
            if not depth:
                names.append(word)
            return getattr(kind, method)(self, *args)

        return read

    own = {m: special(m, word) for m, word in _SPECIAL.items() if hasattr(kind, m)}
    own |= {"__call__": called, "__getattribute__": attribute}
    block.__class__ = type(kind.__name__, (kind,), own)
    try:
        yield names
    finally:
        block.__class__ = kind
