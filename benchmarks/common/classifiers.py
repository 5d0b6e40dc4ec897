"""Logits and top-1 accuracy of classifiers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from updp.blocks.modules import evaluating
from updp.data.batches import Batch
from updp.tasks import CLASSIFICATION
from updp.training.evaluate import evaluate


@torch.no_grad()
def predict(net: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and labels (N,) over all batches, in evaluation mode."""
    with evaluating(net):
        parts = [(CLASSIFICATION.run(net, images), labels) for images, labels in batches]
    return torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts])


def top1(net: nn.Module, batches: Iterable[Batch]) -> float:
    """Top-1 accuracy of a classifier, in percent."""
    return evaluate(CLASSIFICATION, {"net": net}, batches)[0]["net"]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of logits (N, classes) for labels (N,), in percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()
