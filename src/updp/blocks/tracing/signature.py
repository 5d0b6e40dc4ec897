"""Parameters of a traced forward with their values in a real call; they become placeholders."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from updp.blocks.tracing.calls import Arguments, arguments, signature_of

_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device, type(None), type(...))
_STARS = {
    int(inspect.Parameter.VAR_POSITIONAL): "*",
    int(inspect.Parameter.VAR_KEYWORD): "**",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a forward in a call.

    name:     name in the signature
    target:   name in the graph: with `*` or `**` if it takes any number of values
    default:  `()` or `(default,)`
    value:    value in the call
    by_place: whether the call passed it by position
    """

    name: str
    target: str
    default: tuple[Any, ...]
    value: Any
    by_place: bool


def parameters(forward: Callable[..., Any], call: Arguments) -> list[Parameter]:
    """Parameters of a method except the first; `*args` and `**kwargs` only if they have values."""
    bound = arguments(forward, call)
    found: list[Parameter] = []
    for i, p in enumerate(signature_of(forward).parameters.values()):
        stars = _STARS.get(int(p.kind), "")
        if stars and not bound.get(p.name):
            continue
        default = () if p.default is p.empty else (p.default,)
        named = p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)
        by_place = not named and i < len(call.args)
        found.append(Parameter(p.name, f"{stars}{p.name}", default, bound[p.name], by_place))
    return found


def is_constant(value: Any) -> bool:
    """Whether a value is a number, flag, text or None, or a tuple, list or dict of these.

    >>> is_constant({"output_attentions": False}), is_constant((torch.zeros(1), None))
    (True, False)
    """
    leaves: list[Any] = []
    map_aggregate(value, leaves.append)
    return all(isinstance(leaf, _PLAIN) for leaf in leaves)


def holds_tensor(value: Any) -> bool:
    """Whether a value is a tensor, or contains one in nested tuples, lists and dicts."""
    found: list[Any] = []
    map_aggregate(value, lambda v: found.append(v) if isinstance(v, Tensor) else None)
    return bool(found)
