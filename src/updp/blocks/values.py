"""Values that modules take and return: the tensors in them, and how far two of them differ."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [*value.unbind()] if value.is_nested else [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for part in value for tensor in tensors_of(part)]


def difference(actual: Any, expected: Any) -> float:
    """Largest relative L2 error among the tensors of two values; infinite where shapes differ.

    NaNs and infinities count as equal to their like.
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
