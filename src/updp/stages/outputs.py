"""Sample outputs of a model, stored to check later whether another model is the same.

Equal weights do not prove it: code and settings of modules also decide what a model computes.
"""

from typing import ClassVar, Self

import numpy as np
import torch
from torch import nn

from updp.blocks.modules import evaluating
from updp.blocks.nested import Samples, call
from updp.blocks.values import tensors_of
from updp.data.order import spaced
from updp.errors import UserError
from updp.io.records import Record

_KEPT = 64  # number of values kept per tensor
_NEAR = 0.01  # relative; the difference between two devices is much smaller


class Outputs(Record):
    """Values of each tensor that a model returned for two example inputs, evenly spaced in it."""

    values: tuple[tuple[float, ...], ...]  # at most 64 values of each tensor, evenly spaced in it

    @classmethod
    def of(cls, model: nn.Module, example: Samples) -> Self:
        """Run the model in evaluation mode and keep samples of its outputs."""
        with torch.no_grad(), evaluating(model):
            found = [x.detach().cpu().flatten() for x in tensors_of(call(model, example))]
        return cls(values=tuple(tuple(_some(x.real.float().numpy())) for x in found))

    def check(self, model: nn.Module, example: Samples, message: str) -> None:
        """Raise UserError if a model's outputs differ: `message` with "{by}" filled in."""
        gap = _gap(type(self).of(model, example).values, self.values)
        if not gap <= _NEAR:
            raise UserError(message.replace("{by}", "wholly" if np.isinf(gap) else f"{gap:.0%}"))


class BaselineOutputs(Outputs):
    """Outputs of the baseline for two example inputs, some values of each tensor."""

    FILE: ClassVar[str] = "sites/outputs.json"


class MergedOutputs(Outputs):
    """Outputs of the merged model for two example inputs, some values of each tensor."""

    FILE: ClassVar[str] = "merge/outputs.json"


def _some(values: np.ndarray) -> list[float]:
    some = np.nan_to_num(values[spaced(len(values), _KEPT)])
    return [float(f"{value:.6g}") for value in some]


def _gap(values: tuple[tuple[float, ...], ...], expected: tuple[tuple[float, ...], ...]) -> float:
    """Relative L2 error over all values; infinite if their numbers differ."""
    if [len(x) for x in values] != [len(x) for x in expected]:
        return float("inf")
    own, other = (np.array([x for row in rows for x in row]) for rows in (values, expected))
    return float(np.linalg.norm(own - other) / max(float(np.linalg.norm(other)), 1e-30))
