"""Mixup and CutMix: batches whose images and labels are blends of two."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix, MixUp

from updp.recipe import TrainingSettings


def mixed(
    images: Tensor, labels: Tensor, classes: int, recipe: TrainingSettings, seed: int
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and targets: labels (N,) as they are, or shares of classes (N, classes).

    mixup: l x + (1 - l) x', with x' the image before in the batch and l ~ Beta(mixup, mixup) for
    the whole batch (Zhang et al., *mixup*, 2018). cutmix: a box of about (1 - l) of the area is
    that of x' (Yun et al., *CutMix*, 2019). The labels' shares are those of the pixels. Where both
    are on, each batch takes one of them, with even chances.

    A pure function of its arguments: the caller's random state is left as it was.
    """
    if not (recipe.mixup or recipe.cutmix):
        return images, labels
    # The CPU's generator alone: both draw from it, wherever the images are.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        cut = bool(recipe.cutmix) and (not recipe.mixup or torch.rand(()).item() < 0.5)
        if cut:
            kind = CutMix(alpha=recipe.cutmix, num_classes=classes)
        else:
            kind = MixUp(alpha=recipe.mixup, num_classes=classes)
        result: tuple[Tensor, Tensor] = kind(images, labels)
    return result
