"""The best weights that a training passes through; their state survives a kill."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from updp.io.files import copy_tensors


class BestWeights:
    """The weights with the lowest score at evenly spaced steps, including the first and last.

    Args:
        weights: tensors of any shape that the training changes in place, by name.
        score: scores the current network on images that are not trained on; lower is better.
        checks: number of scorings after the one at the start.
        total: number of steps of the training.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], score: Callable[[], float], checks: int, total: int
    ) -> None:
        self._weights, self._score = weights, score
        self.tensors = {name: tensor.detach().clone() for name, tensor in weights.items()}
        self.score, self.step = math.inf, 0  # the best score, and the number of steps before it
        self._due = {round(total * check / checks) for check in range(checks + 1)}

    def is_due(self, step: int) -> bool:
        """Whether to score the weights after `step` steps."""
        return step in self._due

    @torch.no_grad()
    def consider(self, step: int, tensors: Mapping[str, Tensor]) -> float:
        """Score `tensors`, the weights or their average after `step` steps; keep them if best.

        Restores the weights afterwards. Returns the score.
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

        Raises ValueError if names, shapes or types of the tensors differ.
        """
        copy_tensors(tensors, self.tensors)
        self.score, self.step = score, step


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        if tensor is not source[name]:
            tensor.copy_(source[name])
