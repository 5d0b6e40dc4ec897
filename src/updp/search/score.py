"""What a score is: a loss on images held out of the training split, beside the baseline."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp.data.feed import Feed
from updp.training.evaluate import predict

_CHUNK = 64  # images scored at once; after each it is asked whether to go on
_BATCH = 256  # that the baseline is given
_NO_LABEL = -1


@dataclass(frozen=True)
class Score:
    """Lower is better, 0 at best; of so many images. Top-1 in percent, of those with a label.

    Not complete: scoring stopped before the last image, and these are estimates.
    """

    score: float
    top1: float
    images: int
    complete: bool = True


class HeldOut:
    """Held-out images and what the baseline says of them: scores are means of a loss over them.

    The loss is never negative. `accuracy`: wrong answers in percent; `loss`: cross-entropy;
    `divergence`: KL from the baseline's logits; with `blended` on as many means of two images, too:
    of images that it was trained on the baseline is so sure that they hardly tell plans apart.
    """

    def __init__(
        self, baseline: nn.Module, feed: Feed, kind: str, *, blended: bool = False
    ) -> None:
        self.kind = kind
        held_out = list(feed.held_out())
        images = torch.cat([images for images, _ in held_out])
        labels = torch.cat([labels for _, labels in held_out])
        if blended and kind == "divergence":
            images = torch.cat([images, means_of_two(images)])
            labels = torch.cat([labels, torch.full_like(labels, _NO_LABEL)])
        batches = zip(torch.split(images, _BATCH), torch.split(labels, _BATCH), strict=True)
        logits, _ = predict(baseline, batches)
        # Least sure first: most of a loss is theirs, so what is hopeless is soon seen to be.
        unsure = 1 - logits.double().softmax(1).square().sum(1)
        order = unsure.argsort(descending=True, stable=True)
        images, labels, logits = images[order], labels[order], logits[order]
        self.shares = (unsure[order].cumsum(0) / unsure.sum()).tolist()
        starts = range(0, len(images), _CHUNK)
        self.chunks = [
            (images[i : i + _CHUNK], labels[i : i + _CHUNK], logits[i : i + _CHUNK]) for i in starts
        ]
        self.images = len(images)

    def score(
        self,
        run: Callable[[int, Tensor], Tensor],
        hopeless: Callable[[float], bool] = lambda bound: False,
    ) -> Score:
        """Of the logits (n, classes) that `run` gives of a chunk's number and images (n, C, H, W).

        `hopeless` is asked after each chunk with a value that the score cannot fall below. What is
        left out is estimated by how sure the baseline is of those images: to second order, what a
        disturbance of logits does to KL is its variance under the baseline's probabilities.
        """
        loss, right, labelled, seen = 0.0, 0, 0, 0
        for number, (images, labels, reference) in enumerate(self.chunks):
            logits = run(number, images)
            loss += self._loss(logits, labels, reference).double().sum().item()
            right += int((logits.argmax(1) == labels).sum())
            labelled += int((labels != _NO_LABEL).sum())
            seen += len(labels)
            if not math.isfinite(loss) or (seen < self.images and hopeless(loss / self.images)):
                break
        share = self.shares[seen - 1] if seen < self.images else 1.0
        score = loss / self.images / (share or 1.0)
        if not math.isfinite(score):  # its logits may be no numbers
            score = math.inf
        top1 = 100 * right / max(labelled, 1)
        return Score(score, top1, seen, seen == self.images or math.isinf(score))

    def _loss(self, logits: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """Of each image (N,)."""
        if self.kind == "accuracy":
            return 100.0 * (logits.argmax(1) != labels)
        if self.kind == "loss":
            return F.cross_entropy(logits, labels, reduction="none")
        own, target = logits.double().log_softmax(1), reference.double().log_softmax(1)
        return (target.exp() * (target - own)).sum(1).clamp(min=0)


def means_of_two(images: Tensor) -> Tensor:
    """The mean of each image (N, C, H, W) and the next one."""
    return (images + images.roll(1, 0)) / 2
