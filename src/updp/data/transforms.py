"""Augmentation of whole batches: random shifts and flips."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Moves each image by up to `shift` pixels, filling in zeros, and may mirror it."""

    shift: int = 0
    flip: bool = False

    def __call__(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Augment (N, C, H, W) of any dtype; all randomness comes from `generator`."""
        count, channels, height, width = batch.shape

        def draw(end: int) -> Tensor:
            """Integers below `end`, (N, 1)."""
            drawn = torch.randint(end, (count, 1), generator=generator, device=generator.device)
            return drawn.to(batch.device)

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
