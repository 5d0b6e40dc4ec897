"""How good a plan is, on images held out of the training split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp import recipe as recipes
from updp.engine.evaluate import predict
from updp.engine.feed import Feed
from updp.engine.statistics import preserved, recalibrate
from updp.rewrite import Supernet
from updp.search.replay import Replay

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


class Scorer:
    """Scores plans of one supernet: the mean of a loss, which is never negative, over images.

    `accuracy`: wrong answers in percent; `loss`: cross-entropy; `divergence`: KL from the
    baseline's logits, on these images and, if the recipe says so, on as many means of two: of
    images that it was trained on the baseline is so sure that they hardly tell plans apart.
    BatchNorm statistics are recalibrated for each plan, if the recipe says so, and put back
    afterwards: a score does not depend on what was scored before.
    """

    def __init__(
        self, net: Supernet, baseline: nn.Module, feed: Feed, recipe: recipes.Recipe
    ) -> None:
        settings = recipe.search
        self.net, self.kind = net, settings.score
        self.calibration = feed.calibration() if recipe.recalibrates else []
        held_out = list(feed.held_out())
        images = torch.cat([images for images, _ in held_out])
        labels = torch.cat([labels for _, labels in held_out])
        if blended := settings.blended and self.kind == "divergence":
            images = torch.cat([images, means_of_two(images)])
            labels = torch.cat([labels, torch.full_like(labels, _NO_LABEL)])
        batches = zip(torch.split(images, _BATCH), torch.split(labels, _BATCH), strict=True)
        logits, _ = predict(baseline, batches)
        # Least sure first: most of a loss is theirs, so what is hopeless is soon seen to be.
        unsure = 1 - logits.double().softmax(1).square().sum(1)
        order = unsure.argsort(descending=True, stable=True)
        if blended:  # in turn with those that have a label
            first = order < len(order) // 2
            order = torch.stack([order[first], order[~first]], 1).flatten()
        images, labels, logits = images[order], labels[order], logits[order]
        self.shares = (unsure[order].cumsum(0) / unsure.sum()).tolist()
        starts = range(0, len(images), _CHUNK)
        self.chunks = [
            (images[i : i + _CHUNK], labels[i : i + _CHUNK], logits[i : i + _CHUNK]) for i in starts
        ]
        self.images = len(images)
        total = self.images + sum(len(batch) for batch in self.calibration)
        net.eval()
        net.choose({})
        with torch.no_grad():
            self.replay = Replay(net, settings.reuse_mb, total, images[:2])

    @torch.no_grad()
    def __call__(
        self, choices: Mapping[str, str], hopeless: Callable[[float], bool] = lambda bound: False
    ) -> Score:
        """The plan's score; of fewer images when it is certain that the score is hopeless.

        `hopeless` is asked after each chunk with a value that the score cannot fall below. What is
        left out is estimated by how sure the baseline is of those images: to second order, what a
        disturbance of logits does to KL is its variance under the baseline's probabilities.
        """
        training = self.net.training
        self.net.eval()
        self.net.choose(choices)
        self.replay.begin()
        with preserved(self.net):
            if self.calibration:
                recalibrate(
                    self.net, self.calibration, lambda i, x: self.replay(("calibration", i), x)
                )
            self.replay.calibrated()
            score = self._score(lambda i, x: self.replay(("held out", i), x), hopeless)
        self.replay.end()
        self.net.train(training)
        return score

    @torch.no_grad()
    def anew(self, choices: Mapping[str, str]) -> Score:
        """The plan's score with the weights and statistics that the net has now."""
        self.net.eval()
        self.net.choose(choices)
        return self._score(lambda i, x: self.net(x), lambda bound: False)

    def _score(
        self, run: Callable[[int, Tensor], Tensor], hopeless: Callable[[float], bool]
    ) -> Score:
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
        return Score(score, 100 * right / labelled, seen, seen == self.images or math.isinf(score))

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
