"""Tasks with numbers or with a class for each pixel: regression, embedding, segmentation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from updp.tasks.base import Task
from updp.tasks.labels import not_classes, not_finite, not_of_model
from updp.tasks.losses import at_least_float32, distillation, divergence, over_counted
from updp.tasks.metric import Metric

_IGNORED = 255  # the label of pixels that do not count
_ROUNDING = 1e-12  # of the sum of squares: a variance below it is rounding


class RegressionTask(Task):
    """Numbers of any shape, such as depth or a box: outputs and labels (N, ...).

    R2 is that of each output of (N, outputs), or channel of (N, channels, H, W), and the mean of
    these; (N, H, W) is one output.
    """

    name = "regression"
    metric = Metric(name="R2")
    agreement = Metric(name="R2 beside the baseline")

    def fault_of_labels(self, labels: Any) -> str:
        """Labels that are NaN or infinite."""
        return not_finite(labels)

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Squared error, over the mean square of the labels."""
        return self.distance(outputs, _like(labels, outputs)).mean()

    def figures(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Per output: sums of squared errors, of labels and of their squares, and the count."""
        labels = _columns(_like(labels, outputs).double())
        error = (_columns(outputs.double()) - labels).square().sum(0)
        count = torch.full_like(error, len(labels))
        return torch.stack([error, labels.sum(0), labels.square().sum(0), count])

    def value(self, figures: Sequence[Tensor]) -> float:
        """The share of the labels' variance that is explained, the mean over outputs, in percent.

        As scikit-learn has it: where labels do not vary the share is 1 if they are met, else 0.
        """
        error, total, squares, count = torch.stack([*figures]).sum(0)
        variance = squares - total.square() / count.clamp_min(1)
        least = _ROUNDING * squares
        met = (error <= least).to(error)
        share = torch.where(variance > least, 1 - error / variance, met)
        return 100 * float(share.mean())


class Segmentation(Task):
    """A class for each pixel: logits (N, classes, H, W) and labels (N, H, W), 255 for none.

    One channel is the logit of class 1 beside 0. Labels may be (N, 1, H, W), too. Logits of another
    size are scaled to that of the labels.
    """

    name = "segmentation"
    metric = Metric(name="mean IoU")
    agreement = Metric(name="mean IoU beside the baseline")
    keys = ("out", "logits")
    takes_images = True

    def fault_of_labels(self, labels: Any) -> str:
        """Labels that are no classes."""
        return not_classes(labels)

    def label_check(self, outputs: Tensor) -> Callable[[Any], str] | None:
        """Labels that are no classes of the model's; a loss of one's own may take others."""
        if type(self).loss is not Segmentation.loss:
            return None
        return partial(not_of_model, classes=max(outputs.shape[1], 2), ignored=_IGNORED)

    def distance(self, outputs: Tensor, baseline: Tensor) -> Tensor:
        """KL(baseline || network) of each pixel, the mean over the pixels."""
        return divergence(_per_class(outputs), _per_class(baseline))

    def predictions(self, outputs: Tensor) -> Tensor:
        """The best class of each pixel."""
        return _per_class(outputs).argmax(1)

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(teacher || network) of softened logits, the mean over pixels, times T^2."""
        own, target = (_per_class(x).movedim(1, -1).flatten(0, -2) for x in (outputs, teacher))
        return distillation(own, target, temperature)

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy."""
        labels = _mask(labels)
        logits = at_least_float32(_sized(_per_class(outputs), labels))
        return over_counted(logits, labels.long(), _IGNORED, smoothing)

    def figures(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Pixels of each class (rows) that were put into each class (columns)."""
        logits, labels = _per_class(outputs), _mask(labels)
        classes = logits.shape[1]
        wanted, found = labels.flatten().long(), _sized(logits, labels).argmax(1).flatten()
        counted = (wanted >= 0) & (wanted < classes) & (wanted != _IGNORED)
        pairs = wanted[counted] * classes + found[counted]
        return torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def value(self, figures: Sequence[Tensor]) -> float:
        """Intersection over union in percent, the mean over classes that occur."""
        table = torch.stack([*figures]).sum(0).double()
        inside = table.diagonal()
        union = table.sum(0) + table.sum(1) - inside
        return 100 * float((inside / union)[union > 0].mean()) if union.any() else 0.0


def _like(labels: Tensor, outputs: Tensor) -> Tensor:
    """Labels in the shape of the outputs, from which (N,) differs for one number a sample."""
    return labels.to(outputs).reshape_as(outputs)


def _columns(values: Tensor) -> Tensor:
    """Numbers with a column for each output or channel, see `RegressionTask`."""
    if values.ndim == 2 or values.ndim > 3:
        return values.movedim(1, -1).flatten(0, -2)
    return values.reshape(-1, 1)


def _per_class(logits: Tensor) -> Tensor:
    """Logits with a channel for each class; one channel x is (0, x), whose softmax is its sigmoid.

    So cross-entropy is that of a Bernoulli variable, and the best class is told by the sign.
    """
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], 1)


def _mask(labels: Tensor) -> Tensor:
    """Labels without an axis for one channel, which masks read as pictures have."""
    return labels.squeeze(1) if labels.ndim == 4 else labels


def _sized(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[2:] == labels.shape[1:]:
        return logits
    return F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
