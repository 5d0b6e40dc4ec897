"""The best of the weights that a training passes through, resumable after a kill."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from updp.io.files import copy_tensors


class BestWeights:
    """The weights of the lowest score among those at evenly spaced moments, start and end included.

    Args:
        weights: tensors of any shape that the training changes in place, by name.
        score: of the network as it is, on images that it is not trained on; lower is better.
        checks: how often the start is followed by a check.
        total: steps of the training.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], score: Callable[[], float], checks: int, total: int
    ) -> None:
        self._weights, self._score = weights, score
        self.tensors = {name: tensor.detach().clone() for name, tensor in weights.items()}
        self.score, self.step = math.inf, 0  # the best score, and after how many steps it was
        self._due = {round(total * check / checks) for check in range(checks + 1)}

    def is_due(self, step: int) -> bool:
        """Whether the weights after `step` steps are to be scored."""
        return step in self._due

    @torch.no_grad()
    def consider(self, step: int, tensors: Mapping[str, Tensor]) -> float:
        """Score `tensors`, the weights or an average of them after `step` steps; keep the best.

        The weights are in place again afterwards. Returns the score.
        """
        own = {name: tensor.detach().clone() for name, tensor in self._weights.items()}
        _copy(tensors, self._weights)
        score = self._score()
        if score < self.score:
            _copy(self._weights, self.tensors)
            self.score, self.step = score, step
        _copy(own, self._weights)
        return score

    def load(self, tensors: Mapping[str, Tensor], score: float, step: int) -> None:
        """Continue from the state of an earlier process.

        Raises ValueError: names, shapes or types of the tensors are others.
        """
        copy_tensors(tensors, self.tensors)
        self.score, self.step = score, step


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        if tensor is not source[name]:
            tensor.copy_(source[name])
