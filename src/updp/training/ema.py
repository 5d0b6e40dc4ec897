"""An exponential moving average of weights, which a kill does not disturb."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Follows `weights`: after step n, average = d * average + (1 - d) * weights.

    The decay d is min(decay, (1 + n) / (10 + n)), n from 0, so that the beginning is soon forgotten
    (TensorFlow's `ExponentialMovingAverage` with `num_updates`). Statistics of BatchNorms are
    averaged as weights are (as in timm's `ModelEmaV3`); whole numbers are copied.

    `weights` are the tensors themselves, of any shape, which the training changes in place.
    `tensors` is all of the state: the decay is a function of the step's number.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self._weights = decay, weights
        self.tensors = {name: tensor.clone() for name, tensor in weights.items()}
        floating = [name for name, t in weights.items() if t.is_floating_point()]
        self._pairs = (
            [self.tensors[name] for name in floating],
            [weights[name] for name in floating],
        )
        self._copied = [name for name in weights if name not in set(floating)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(*self._pairs, None)  # type: ignore[no-untyped-call]
        for name in self._copied:
            self.tensors[name].copy_(self._weights[name])

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `tensors` of the same names."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
