"""Exponential moving average (EMA) of weights, resumable after a kill."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from updp.io.files import copy_tensors


class WeightAverage:
    """Moving average of `weights`: after step n, average = d * average + (1 - d) * weights.

    The decay d is min(decay, (1 + n) / (10 + n)), n from 0, so that the beginning is soon forgotten
    (TensorFlow's `ExponentialMovingAverage` with `num_updates`). BatchNorm statistics are averaged
    as weights are (timm's `ModelEmaV3`); integers are copied. `tensors` is the whole state.

    Args:
        weights: tensors of any shape that the training changes in place.
        decay: upper bound of d.
        first: the training step from which n counts. Before it nothing is averaged, because the
            weights may not be in use yet.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float, first: int = 0) -> None:
        self.decay, self.first, self._weights = decay, first, weights
        self.tensors = {name: tensor.clone() for name, tensor in weights.items()}
        floating = [name for name, t in weights.items() if t.is_floating_point()]
        self._pairs = (
            [self.tensors[name] for name in floating],
            [weights[name] for name in floating],
        )
        self._copied = [name for name in weights if name not in set(floating)]

    @torch.no_grad()
    def begin(self, step: int) -> None:
        """At step `first`, restart from the weights; call before the weights change in `step`."""
        if step == self.first > 0:  # at step 0 the average already equals the weights
            for name, tensor in self.tensors.items():
                tensor.copy_(self._weights[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the weights as they are after step `step` (counted from 0)."""
        if (count := step - self.first) < 0:
            return
        decay = min(self.decay, (1 + count) / (10 + count))
        get_ema_multi_avg_fn(decay)(*self._pairs, None)  # type: ignore[no-untyped-call]
        for name in self._copied:
            self.tensors[name].copy_(self._weights[name])

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `tensors`. Raises ValueError if names, shapes or types differ."""
        copy_tensors(tensors, self.tensors)
