"""Augmentation: random shifts and flips of whole batches, or timm's training transforms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from updp.blocks.nested import Samples
from updp.data.images import Images, InMemory
from updp.data.preprocess import Preprocess
from updp.io import processes
from updp.recipe import DataSettings


@dataclass(frozen=True)
class Augment:
    """Moves each image by up to `shift` pixels, filling in zeros, and may mirror it."""

    shift: int = 0
    flip: bool = False

    def __call__(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Augment (N, C, H, W) of any dtype; all randomness comes from `generator`.

        Several processes draw for all of a batch, and each takes what is for its own images.
        """
        count, channels, height, width = batch.shape
        total, first = count * processes.count(), count * processes.rank()

        def draw(end: int) -> Tensor:
            """Integers below `end`, (N, 1)."""
            drawn = torch.randint(end, (total, 1), generator=generator, device=generator.device)
            return drawn[first : first + count].to(batch.device)

        steps = 2 * self.shift + 1
        rows = torch.arange(height, device=batch.device) + draw(steps)  # (N, H)
        columns = torch.arange(width, device=batch.device).expand(count, -1)  # (N, W)
        if self.flip:
            columns = torch.where(draw(2) == 1, columns.flip(1), columns)
        columns = columns + draw(steps)
        padded = F.pad(batch, (self.shift,) * 4)
        image = torch.arange(count, device=batch.device)[:, None, None, None]
        channel = torch.arange(channels, device=batch.device)[:, None, None]
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


class Augmented(Images):
    """Images of whole pictures under a random `transform`, read anew at every access."""

    draws: ClassVar[bool] = True

    def __init__(self, images: Images, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.transform = images, transform
        self.targets, self.size = images.targets, images.size
        # Whole pictures are read from their files again, also of images in memory.
        stored = images.whole if isinstance(images, InMemory) and images.whole else images
        self.groups = stored.groups

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        picture, label = self.images.picture(index)
        return self.transform(picture), label

    def collate(self, items: list[tuple[Any, Any]]) -> tuple[Samples, Any]:
        """A batch of items, as the images make it."""
        return self.images.collate(items)


def training_transform(settings: DataSettings, preprocess: Preprocess) -> Any:
    """timm's training transform, from a picture to an image (C, H, W).

    The image is uint8, or with random erasing, which comes after normalisation, normalised floats.
    """
    given = settings.timm_transform()
    return create_transform(
        preprocess.input_size[1:],
        is_training=True,
        mean=preprocess.mean,
        std=preprocess.std,
        normalize=given["re_prob"] > 0,
        **given,
    )
