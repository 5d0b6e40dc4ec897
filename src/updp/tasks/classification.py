"""Classification of images or other samples, into exactly one class or into several."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from updp.errors import UserError
from updp.tasks.base import Task
from updp.tasks.labels import not_shares
from updp.tasks.losses import at_least_float32, classification, distillation, divergence
from updp.tasks.metric import Metric


class Classification(Task):
    """One class per sample: logits (N, classes) and labels (N,)."""

    name = "classification"
    metric = Metric(name="top-1", of_samples=True)
    agreement = Metric(name="agreement", of_samples=True)
    keys = ("logits", "out")

    def distance(self, outputs: Tensor, baseline: Tensor) -> Tensor:
        """KL(baseline || network)."""
        return divergence(outputs, baseline)

    def uncertainty(self, baseline: Tensor) -> Tensor:
        """The probability that two draws from a sample's classes differ.

        To second order the KL divergence due to a disturbance of the logits is the variance of that
        disturbance under the baseline's probabilities.
        """
        return 1 - baseline.double().softmax(1).square().sum(1)

    def predictions(self, outputs: Tensor) -> Tensor:
        """The best class of each sample."""
        return outputs.argmax(1)

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy; labels may be class probabilities (N, classes)."""
        return classification(outputs, labels, smoothing)

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(teacher || network) of softened logits, times T^2."""
        return distillation(outputs, teacher, temperature)

    def figures(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Number of right answers, and of samples."""
        right = (outputs.argmax(1) == labels).sum()
        return torch.stack([right, right.new_tensor(len(labels))])

    def value(self, figures: Sequence[Tensor]) -> float:
        """Top-1 accuracy in percent."""
        right, samples = map(float, torch.stack([*figures]).sum(0))
        return 100 * (right / max(samples, 1.0))


class MultiLabel(Task):
    """Any number of classes per sample: logits (N, classes) and labels of the same shape."""

    name = "multi-label"
    metric = Metric(name="F1")
    agreement = Metric(name="F1 beside the baseline")
    keys = ("logits", "out")
    takes_images = True

    def fault_of_labels(self, labels: Any) -> str:
        """Report labels that are not between zero and one."""
        return not_shares(labels)

    def distance(self, outputs: Tensor, baseline: Tensor) -> Tensor:
        """KL(baseline || network) of each class as a yes/no variable, summed over classes."""
        own = _two_sided(outputs.double())
        target = _two_sided(baseline.double())
        return (target.exp() * (target - own)).flatten(1).sum(1)

    def predictions(self, outputs: Tensor) -> Tensor:
        """1 if a class is more likely than not, else 0."""
        return (outputs > 0).to(outputs)

    def loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Binary cross-entropy."""
        labels = _of_shape(labels, outputs)
        target = labels.to(at_least_float32(outputs)) * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(at_least_float32(outputs), target)

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """`distance` of softened logits, times T^2."""
        apart = self.distance(outputs / temperature, teacher.detach() / temperature)
        return apart.mean() * temperature**2

    def figures(self, outputs: Tensor, labels: Any) -> Tensor:
        """Numbers of classes that are found, missed, and wrongly found."""
        found, wanted = outputs > 0, _of_shape(labels, outputs) > 0.5
        counts = [(found & wanted).sum(), (~found & wanted).sum(), (found & ~wanted).sum()]
        return torch.stack(counts)

    def value(self, figures: Sequence[Tensor]) -> float:
        """The F1 score over all samples and classes, in percent."""
        right, missed, wrong = map(float, torch.stack([*figures]).sum(0))
        return 100 * (2 * right / max(2 * right + missed + wrong, 1.0))


def _of_shape(labels: Tensor, outputs: Tensor) -> Tensor:
    """Labels in the shape of the outputs; (N,) is reshaped for one output. Raises UserError."""
    if outputs.shape[1:] == (1,) and labels.ndim == 1:
        return labels[:, None]
    if labels.shape != outputs.shape:
        raise UserError(
            f"labels of the task '{MultiLabel.name}' are {tuple(labels.shape)} and the outputs "
            f"{tuple(outputs.shape)}: give a zero or a one for each output"
        )
    return labels


def _two_sided(logits: Tensor) -> Tensor:
    """Logarithms of the probabilities of yes and no, on a new last axis."""
    return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], -1)
