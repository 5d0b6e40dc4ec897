"""Nested values that modules take and return: the tensors in them, and how far they differ."""

import dataclasses
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, mappings, dataclasses and other objects, in order.

    For objects of unknown classes it searches the attributes. Modules are left out.
    """
    found: list[Tensor] = []
    seen: dict[int, Any] = {}  # containers and objects may contain each other
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Tensor):
            found += part.unbind() if part.is_nested else [part]
        elif id(part) not in seen:
            seen[id(part)] = part
            waiting += reversed(_parts_of(part))
    return found


def _parts_of(value: Any) -> list[Any]:
    """The values in a container, or the attributes of an object of an unknown class."""
    if isinstance(value, (tuple, list)):
        return [*value]
    if isinstance(value, Mapping):
        return [*value.values()]
    if isinstance(value, (type, ModuleType, nn.Module)):
        return []
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return [*getattr(value, "__dict__", {}).values()]


def difference(actual: Any, expected: Any) -> float:
    """Largest relative L2 error among the tensors of two values; infinite if shapes differ.

    Two NaNs, or two equal infinities, count as equal.
    """
    pairs = tensors_of(actual), tensors_of(expected)
    if [x.shape for x in pairs[0]] != [x.shape for x in pairs[1]]:
        return math.inf
    return max(map(_relative, *pairs), default=0.0)


def _relative(x: Tensor, y: Tensor) -> float:
    wide = torch.complex128 if x.is_complex() or y.is_complex() else torch.float64
    x, y = x.detach().to(y.device, wide), y.detach().to(wide)
    same = (x == y) | (x.isnan() & y.isnan())
    if same.all():
        return 0.0
    error = float((x - y)[~same].norm() / y[y.isfinite()].norm().clamp_min(1e-30))
    return error if math.isfinite(error) else math.inf
