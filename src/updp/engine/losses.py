"""Losses on logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of softened logits (N, classes), mean over images, times T^2.

    Hinton et al., *Distilling the Knowledge in a Neural Network*, 2015, section 2.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    target = F.log_softmax(teacher.detach() / temperature, dim=1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2
