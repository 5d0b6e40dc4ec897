"""The score of a network: a loss on images held out of the training split, beside the baseline."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.data.feed import Feed
from updp.data.images import NO_LABEL
from updp.training.evaluate import predict

_CHUNK = 64  # images scored at once; scoring may stop after each chunk
_BATCH = 256  # images in a batch of the baseline

# What accuracies are measured against; the baseline's predictions where there are no labels.
Reference = Literal["labels", "baseline"]

# Whether a score that cannot fall below this bound is useless.
Hopeless = Callable[[float], bool]


def never(bound: float) -> bool:
    """The `Hopeless` of complete scores."""
    return False


def measure_of(reference: Reference) -> str:
    """The name of accuracies that are measured against it."""
    return "top-1" if reference == "labels" else "agreement"


@dataclass(frozen=True)
class Score:
    """The score of a plan."""

    score: float  # mean loss; lower is better, 0 is best
    top1: float  # accuracy in percent; without any labels, agreement with the baseline
    images: int  # that were scored
    complete: bool = True  # whether these are all; else score and accuracy are estimates


class HeldOut:
    """Held-out images with the baseline's logits; scores are means of a loss over them.

    Where they have no labels, the baseline's predictions are taken for them.
    """

    def __init__(
        self, baseline: nn.Module, feed: Feed, kind: str, *, blended: bool = False
    ) -> None:
        """Run the baseline on the held-out images.

        Args:
            kind: the loss, never negative: `accuracy` (wrong answers in percent), `loss`
                (cross-entropy) or `divergence` (KL divergence from the baseline's logits).
            blended: with `divergence`, add as many means of two images. Of images that it was
                trained on the baseline is so certain that they hardly tell plans apart.
        """
        self.kind = kind
        held_out = list(feed.held_out())
        images = torch.cat([images for images, _ in held_out])
        labels = torch.cat([labels for _, labels in held_out])
        if blended and kind == "divergence":
            images = torch.cat([images, (images + images.roll(1, 0)) / 2])
            labels = torch.cat([labels, torch.full_like(labels, NO_LABEL)])
        batches = zip(torch.split(images, _BATCH), torch.split(labels, _BATCH), strict=True)
        logits, _ = predict(baseline, batches)
        if not feed.labelled:
            labels = logits.argmax(1)
        # Least certain first: they have most of the loss, so a hopeless plan shows soon.
        unsure = 1 - logits.double().softmax(1).square().sum(1)
        order = unsure.argsort(descending=True, stable=True)
        parts = [torch.split(values[order], _CHUNK) for values in (images, labels, logits)]
        self.shares = (unsure[order].cumsum(0) / unsure.sum()).tolist()
        self.chunks = list(zip(*parts, strict=True))
        self.images = len(images)

    def score(self, run: Callable[[int, Tensor], Tensor], hopeless: Hopeless = never) -> Score:
        """Score a network on the held-out images.

        Scoring stops after a chunk when `hopeless` says so of a lower bound of the score. The loss
        of the remaining images is then extrapolated by how certain the baseline is of them: to
        second order, the KL divergence that a disturbance of logits causes is its variance under
        the baseline's probabilities.

        `run` is the network: from a chunk's number and images (n, C, H, W) to logits (n, classes).
        """
        loss, right, labelled, seen = 0.0, 0, 0, 0
        for number, (images, labels, reference) in enumerate(self.chunks):
            logits = run(number, images)
            loss += self._loss(logits, labels, reference).double().sum().item()
            right += int((logits.argmax(1) == labels).sum())
            labelled += int((labels != NO_LABEL).sum())
            seen += len(labels)
            if not math.isfinite(loss) or (seen < self.images and hopeless(loss / self.images)):
                break
        share = self.shares[seen - 1] if seen < self.images else 1.0
        score = loss / self.images / (share or 1.0)
        if not math.isfinite(score):  # logits may be NaN
            score = math.inf
        top1 = 100 * right / max(labelled, 1)
        return Score(score, top1, seen, seen == self.images or math.isinf(score))

    def _loss(self, logits: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """Per-image loss, shape (N,), of logits (N, classes) beside the baseline's."""
        if self.kind == "accuracy":
            return 100.0 * (logits.argmax(1) != labels)
        if self.kind == "loss":
            return F.cross_entropy(logits, labels, reduction="none")
        own, target = logits.double().log_softmax(1), reference.double().log_softmax(1)
        return (target.exp() * (target - own)).sum(1).clamp(min=0)
