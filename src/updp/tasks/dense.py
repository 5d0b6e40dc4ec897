"""Tasks with numbers, or with one class per pixel: regression and segmentation."""

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

_IGNORED = 255  # label of pixels that are ignored
_ROUNDING = 1e-12  # variance below this share of the sum of squares is rounding


class RegressionTask(Task):
    """Numbers of any shape, such as depth or a box: outputs and labels (N, ...).

    R2 is computed for each output of (N, outputs), or channel of (N, channels, H, W), and averaged;
    (N, H, W) counts as one output.
    """

    name = "regression"
    metric = Metric(name="R2")
    agreement = Metric(name="R2 beside the baseline")

    def fault_of_labels(self, labels: Any) -> str:
        """Report labels that are NaN or infinite."""
        return not_finite(labels)

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Squared error, over the mean square of the labels."""
        return self.distance(outputs, _like(labels, outputs)).mean()

    def figures(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Per output: sums of squared errors, of labels and of squared labels, and the count."""
        labels = _columns(_like(labels, outputs).double())
        error = (_columns(outputs.double()) - labels).square().sum(0)
        count = torch.full_like(error, len(labels))
        return torch.stack([error, labels.sum(0), labels.square().sum(0), count])

    def value(self, figures: Sequence[Tensor]) -> float:
        """Share of the labels' variance that is explained, averaged over outputs, in percent.

        As in scikit-learn, for constant labels it is 1 if they are predicted exactly, else 0.
        """
        error, total, squares, count = torch.stack([*figures]).sum(0)
        variance = squares - total.square() / count.clamp_min(1)
        least = _ROUNDING * squares
        met = (error <= least).to(error)
        share = torch.where(variance > least, 1 - error / variance, met)
        return 100 * float(share.mean())


class Segmentation(Task):
    """One class per pixel: logits (N, classes, H, W) and labels (N, H, W), 255 to ignore.

    A single channel is the logit of class 1 against 0. Labels may also be (N, 1, H, W). Logits of
    another size are resized to the labels' size.
    """

    name = "segmentation"
    metric = Metric(name="mean IoU")
    agreement = Metric(name="mean IoU beside the baseline")
    keys = ("out", "logits")
    takes_images = True

    def fault_of_labels(self, labels: Any) -> str:
        """Report labels that are not class numbers."""
        return not_classes(labels)

    def label_check(self, outputs: Tensor) -> Callable[[Any], str] | None:
        """Report labels beyond the model's classes; none if a subclass has a loss of its own."""
        if type(self).loss is not Segmentation.loss:
            return None
        return partial(not_of_model, classes=max(outputs.shape[1], 2), ignored=_IGNORED)

    def distance(self, outputs: Tensor, baseline: Tensor) -> Tensor:
        """KL(baseline || network) of each pixel, averaged over pixels."""
        return divergence(_per_class(outputs), _per_class(baseline))

    def predictions(self, outputs: Tensor) -> Tensor:
        """The best class of each pixel."""
        return _per_class(outputs).argmax(1)

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(teacher || network) of softened logits, averaged over pixels, times T^2."""
        own, target = (_per_class(x).movedim(1, -1).flatten(0, -2) for x in (outputs, teacher))
        return distillation(own, target, temperature)

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy."""
        labels = _mask(labels)
        logits = at_least_float32(_sized(_per_class(outputs), labels))
        return over_counted(logits, labels.long(), _IGNORED, smoothing)

    def figures(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Confusion matrix: pixels of each class (rows) predicted as each class (columns)."""
        logits, labels = _per_class(outputs), _mask(labels)
        classes = logits.shape[1]
        wanted, found = labels.flatten().long(), _sized(logits, labels).argmax(1).flatten()
        counted = (wanted >= 0) & (wanted < classes) & (wanted != _IGNORED)
        pairs = wanted[counted] * classes + found[counted]
        return torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def value(self, figures: Sequence[Tensor]) -> float:
        """Intersection over union in percent, averaged over the classes that occur."""
        table = torch.stack([*figures]).sum(0).double()
        inside = table.diagonal()
        union = table.sum(0) + table.sum(1) - inside
        return 100 * float((inside / union)[union > 0].mean()) if union.any() else 0.0


def _like(labels: Tensor, outputs: Tensor) -> Tensor:
    """Labels in the shape and type of the outputs; (N,) may have to become (N, 1)."""
    return labels.to(outputs).reshape_as(outputs)


def _columns(values: Tensor) -> Tensor:
    """Numbers as a matrix with one column per output or channel, see `RegressionTask`."""
    if values.ndim == 2 or values.ndim > 3:
        return values.movedim(1, -1).flatten(0, -2)
    return values.reshape(-1, 1)


def _per_class(logits: Tensor) -> Tensor:
    """Logits with a channel per class; a single channel x becomes (0, x): softmax is its sigmoid.

    So cross-entropy is that of a Bernoulli variable, and the sign decides the best class.
    """
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], 1)


def _mask(labels: Tensor) -> Tensor:
    """Labels without the channel axis that masks read as pictures have."""
    return labels.squeeze(1) if labels.ndim == 4 else labels


def _sized(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[2:] == labels.shape[1:]:
        return logits
    return F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
