"""How good a plan is, on images held out of the training split."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from updp.engine.evaluate import accuracy, predict
from updp.engine.feed import Feed
from updp.engine.losses import distillation
from updp.engine.statistics import preserved, recalibrate
from updp.rewrite import Supernet


class Scorer:
    """Scores plans of one supernet; lower is better.

    BatchNorm statistics are recalibrated for each plan and put back afterwards, so the score does
    not depend on what was scored before.
    """

    def __init__(self, net: Supernet, baseline: nn.Module, feed: Feed, kind: str) -> None:
        self.net, self.kind = net, kind
        self.calibration = feed.calibration()
        self.held_out = list(feed.held_out())
        self.reference, _ = predict(baseline, self.held_out)

    def __call__(self, choices: Mapping[str, str]) -> tuple[float, float]:
        """(score, top-1 in percent) of the plan."""
        self.net.choose(choices)
        with preserved(self.net):
            recalibrate(self.net, self.calibration)
            logits, labels = predict(self.net, self.held_out)
        top1 = accuracy(logits, labels)
        return self._score(logits, labels, top1), top1

    def _score(self, logits: Tensor, labels: Tensor, top1: float) -> float:
        if self.kind == "accuracy":
            return -top1
        if self.kind == "loss":
            return F.cross_entropy(logits, labels).item()
        return distillation(logits, self.reference).item()
