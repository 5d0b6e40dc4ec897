"""Mixup and CutMix: batches whose images (and labels, if any) are blends of two images."""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix, MixUp

from updp.blocks.nested import Samples
from updp.io.seeds import random_state
from updp.recipe import TrainingSettings


def mixed(
    images: Samples, labels: Any, classes: int, settings: TrainingSettings, seed: int
) -> tuple[Samples, Any]:
    """Blend each image of a batch with the previous one, and their labels in the same way.

    mixup: l x + (1 - l) x', with x' the previous image of the batch and l ~ Beta(mixup, mixup) for
    the whole batch (Zhang et al., *mixup*, 2018). cutmix: a box of about (1 - l) of the area is
    copied from x' (Yun et al., *CutMix*, 2019). If both are on, each batch uses one of them, with
    equal chances.

    Returns:
        Images (N, C, H, W), and class probabilities (N, classes), or `labels` (N,) if both are off.
    """
    if not (settings.mixup or settings.cutmix):
        return images, labels
    labels = labels.clamp(min=0)  # unlabelled images blend, too; another loss covers them
    with random_state(seed):  # both draw on the CPU, on whatever device the images are
        cut = bool(settings.cutmix) and (not settings.mixup or torch.rand(()).item() < 0.5)
        if cut:
            transform = CutMix(alpha=settings.cutmix, num_classes=classes)
        else:
            transform = MixUp(alpha=settings.mixup, num_classes=classes)
        blends: tuple[Tensor, Tensor] = transform(images, labels)
    return blends


def blended(images: Samples) -> Samples:
    """Blend each image with the previous one of the batch: l x + (1 - l) x', with a random l.

    For a student that follows a teacher, because the teacher gives the target of a blend: it makes
    any number of different images from few (Beyer et al., *Knowledge distillation: a good teacher
    is patient and consistent*, 2022, section 3.1). Inputs other than a real tensor are returned
    unchanged.
    """
    if not (isinstance(images, Tensor) and images.is_floating_point()):
        return images
    return torch.lerp(images.roll(1, 0), images, torch.rand(()).item())
