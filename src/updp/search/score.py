"""The score of a network: a loss on held-out training samples, relative to the baseline."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.blocks.modules import evaluating
from updp.blocks.nested import Samples, count, join, split, take
from updp.data.feed import Feed

_CHUNK = 64  # images scored at once; scoring may stop after each chunk
_BATCH = 256  # images per batch of the baseline

# Decides whether a score is useless, given a lower bound of it.
Hopeless = Callable[[float], bool]


def never(bound: float) -> bool:
    """A `Hopeless` that never stops, so that scores are complete."""
    return False


@dataclass(frozen=True)
class Score:
    """The score of a plan."""

    score: float  # mean loss; lower is better, 0 is best
    metric: float  # the task's metric; if nothing is labelled, against the baseline's predictions
    images: int  # number of images scored
    complete: bool = True  # whether all images were scored; else score and metric are estimates


@dataclass(frozen=True)
class _Chunk:
    """Images with the baseline's outputs; `labelled` marks those images that `labels` are for."""

    images: Samples
    outputs: Any
    labelled: Tensor
    labels: Any


class HeldOut:
    """Held-out images with the baseline's outputs; scores are means of a loss over them.

    If they have no labels, the baseline's predictions serve as labels.
    """

    @torch.no_grad()
    def __init__(
        self, baseline: nn.Module, feed: Feed, kind: str, *, blended: bool = False
    ) -> None:
        """Run the baseline on the held-out images.

        Args:
            kind: the loss, never negative: `divergence` (the task's distance from the baseline's
                outputs, KL of logits), or for classifiers `accuracy` (wrong answers in percent) or
                `loss` (cross-entropy).
            blended: with `divergence`, add as many blends of two images. On images from its own
                training the baseline is so certain that they hardly tell plans apart.
        """
        self.kind, self.task = kind, feed.task
        held_out = list(feed.held_out())
        images = join([images for images, _ in held_out])
        labels = join([labels for _, labels in held_out])
        held = count(images)
        is_map = isinstance(images, Tensor) and images.is_floating_point()
        if blended and kind == "divergence" and is_map:
            images = torch.cat([images, (images + images.roll(1, 0)) / 2])
        with evaluating(baseline):
            outputs = join([self.task.run(baseline, part) for part in split(images, _BATCH)])
        if not feed.labelled:
            labels = self.task.predictions(take(outputs, torch.arange(held)))
        # Least certain first: they cause most of the loss, so a hopeless plan shows early.
        unsure = self.task.uncertainty(outputs)
        order = unsure.argsort(descending=True, stable=True)
        self.shares = (unsure[order].cumsum(0) / unsure.sum()).tolist()
        self.chunks: list[_Chunk] = []
        for part in torch.split(order, _CHUNK):
            own = part < held  # blends have no labels
            chunk = take(images, part), take(outputs, part), own, take(labels, part[own])
            self.chunks.append(_Chunk(*chunk))
        self.images = len(images)

    def score(self, run: Callable[[int, Samples], Any], hopeless: Hopeless = never) -> Score:
        """Score a network on the held-out images.

        Scoring stops after a chunk if `hopeless` returns true for a lower bound of the score. The
        loss of the remaining images is then extrapolated by the baseline's uncertainty on them
        (`Task.uncertainty`).

        `run` is the network: from a chunk's number and images (n, C, H, W) to the outputs that
        count, such as logits (n, classes).
        """
        loss, seen = 0.0, 0
        figures: list[Tensor] = []
        for number, chunk in enumerate(self.chunks):
            outputs = run(number, chunk.images)
            loss += self._loss(outputs, chunk).double().sum().item()
            if chunk.labelled.any():
                figures.append(self.task.figures(take(outputs, chunk.labelled), chunk.labels))
            seen += len(chunk.images)
            if not math.isfinite(loss) or (seen < self.images and hopeless(loss / self.images)):
                break
        share = self.shares[seen - 1] if seen < self.images else 1.0
        score = loss / self.images / (share or 1.0)
        if not math.isfinite(score):  # outputs may be NaN
            score = math.inf
        metric = self.task.value(figures) if figures else 0.0
        return Score(score, metric, seen, seen == self.images or math.isinf(score))

    def _loss(self, outputs: Any, chunk: _Chunk) -> Tensor:
        """Per-image loss, shape (N,), of outputs against the baseline's or the labels."""
        if self.kind == "accuracy":
            wrong: Tensor = outputs.argmax(1) != chunk.labels
            return 100.0 * wrong
        if self.kind == "loss":
            return F.cross_entropy(outputs, chunk.labels, reduction="none")
        apart: Tensor = self.task.distance(outputs, chunk.outputs)
        return apart.clamp(min=0)
