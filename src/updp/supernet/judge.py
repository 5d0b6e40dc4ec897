"""Repairs judged by the outputs of the whole network, on images that no fit has seen.

A repair is fitted to the old output of one operator, which only stands in for the network's output.
A classifier that is fitted to a few hundred images, or a last block of whose tokens only one is
read, may come nearer to its own target while the logits move away from the baseline's.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from updp.blocks.nested import Samples
from updp.io import processes
from updp.supernet.supernet import Supernet
from updp.supernet.walk import Walk
from updp.tasks import CLASSIFICATION, Task

T = TypeVar("T")

_SHARES = (1.0, 0.5, 0.25)  # shares of the change that a repair makes


class Judge:
    """Decides how much of each repair to keep, by the outputs' distance from the baseline's.

    Tries shares of the change and keeps the largest one that is not worse than the best by more
    than the standard error of their paired difference: most repairs change little alone, and later
    repairs build on them. The task defines the distance, for logits KL(baseline || network). It is
    measured on each image of the walk's batches from number `first` on, of all processes; no fit
    may use these images. Sites are pruned one after another and later ones are still the
    baseline's, so each repair is judged only by what it can change.
    """

    def __init__(
        self,
        net: Supernet,
        baseline: Sequence[Any],
        walk: Walk,
        first: int,
        task: Task = CLASSIFICATION,
    ) -> None:
        """Prepare to judge repairs of `net`; `baseline` are its outputs before any change."""
        self._net, self._walk, self._first = net, walk, first
        self._baseline, self._task = baseline, task
        self._errors: Tensor | None = None  # distances of the net as it is now; None: not measured

    def forget(self) -> None:
        """Discard the cached distances, because pruning a site changed the net."""
        self._errors = None

    def measure_pruned(self) -> float:
        """Measure, cache and return the mean distance after a site was pruned and fitted."""
        self._errors = self._divergences()
        return self._errors.mean().item()

    def keep_share_of(self, repair: Callable[[], T]) -> tuple[T, float, float]:
        """Run `repair`, and keep a share of its change of the weights, possibly none.

        Returns:
            The result of `repair`, the share that was kept, and the mean distance with it.
        """
        tensors = [t for t in self._net.weights().values() if t.is_floating_point()]
        before = [t.clone() for t in tensors]
        unrepaired = self._divergences() if self._errors is None else self._errors
        fitted = repair()
        pairs = zip(tensors, before, strict=True)
        changes = [(t, old, t.clone()) for t, old in pairs if not torch.equal(t, old)]
        errors = {}
        for share in _SHARES:
            _interpolate(changes, share)
            errors[share] = self._divergences()
        errors[0.0] = unrepaired
        best = min(errors.values(), key=lambda each: each.mean().nan_to_num(math.inf).item())
        kept = next((share for share in errors if not _is_worse(errors[share], best)), 0.0)
        _interpolate(changes, kept)
        self._errors = errors[kept]
        return fitted, kept, self._errors.mean().item()

    def _divergences(self) -> Tensor:
        """Distance from the baseline, (N,) in float64, resumed at the place visited last."""
        parts = []
        for number, wanted in enumerate(self._baseline, self._first):
            parts += self._task.distance(self._walk.output(number), wanted).tolist()
        every = [error for own in processes.all_gather(parts) for error in own]
        return torch.tensor(every, dtype=torch.float64)


def _is_worse(errors: Tensor, best: Tensor) -> bool:
    """Whether the mean is larger by more than the standard error of the paired difference."""
    difference = errors - best
    noise = difference.std() / len(difference) ** 0.5
    return not difference.mean() <= noise  # written this way, NaN counts as worse


def _interpolate(changes: Sequence[tuple[Tensor, Tensor, Tensor]], share: float) -> None:
    """Set tensors to a share of the way from their old to their new values; 0 and 1 are exact."""
    for tensor, old, new in changes:
        tensor.copy_(torch.lerp(old, new, share) if share else old)  # NaN times 0 is NaN


def split(batches: Sequence[Samples], share: float) -> tuple[list[Samples], list[Samples]]:
    """Split batches of inputs into those to fit to and a share to judge by.

    The judge gets the last images; it gets none if it would be a single one.
    """
    wanted = round(share * sum(map(len, batches)))
    fitted, judged = list(batches), list[Samples]()
    while wanted and (judged or wanted > 1):
        last = fitted.pop()
        kept = max(len(last) - wanted, 0)
        if kept:
            fitted.append(last[:kept])
        judged.insert(0, last[kept:])
        wanted -= len(judged[0])
    return fitted, judged
