"""Losses on logits."""

import torch.nn.functional as F
from torch import Tensor


def distillation(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Distillation loss, KL(teacher || student) of softened logits (N, classes), times T^2.

    A scalar, averaged over images. `teacher` are logits, too; they get no gradient. Hinton et al.,
    *Distilling the Knowledge in a Neural Network*, 2015, section 2.
    """
    student = F.log_softmax(at_least_float32(logits) / temperature, dim=1)
    target = F.log_softmax(at_least_float32(teacher.detach()) / temperature, dim=1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


def classification(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits (N, classes), averaged over images.

    Targets are labels (N,) or class probabilities (N, classes). `smoothing` is the part of each
    target that is spread over all classes (Szegedy et al., *Rethinking the Inception architecture*,
    2016, section 7).
    """
    return F.cross_entropy(at_least_float32(logits), targets, label_smoothing=smoothing)


def over_counted(logits: Tensor, labels: Tensor, ignored: int, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits (N, classes, ...), averaged over labels that are not `ignored`.

    It is 0 if all labels are ignored, as in a batch without a labelled pixel.
    """
    total = F.cross_entropy(
        at_least_float32(logits),
        labels,
        ignore_index=ignored,
        label_smoothing=smoothing,
        reduction="sum",
    )
    return total / (labels != ignored).sum().clamp_min(1)


def divergence(logits: Tensor, baseline: Tensor) -> Tensor:
    """KL(baseline || network) of logits (N, classes, ...), computed in float64, (N,).

    Averaged over the axes behind the classes: pixels or tokens.
    """
    own, target = logits.double().log_softmax(1), baseline.double().log_softmax(1)
    apart = (target.exp() * (target - own)).sum(1)
    return apart if apart.ndim == 1 else apart.flatten(1).mean(1)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32, in which losses are summed; other tensors unchanged."""
    return x.float() if x.dtype.itemsize < 4 else x
