"""Augmentation of whole batches, drawn from one generator."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Each image moves by up to `shift` pixels, zeros coming in, and is mirrored or not."""

    shift: int = 0
    flip: bool = False

    def __call__(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """(N, C, H, W) of any dtype to the same; all randomness comes from `generator`."""
        count, channels, height, width = batch.shape

        def draw(end: int) -> Tensor:
            """(N, 1) whole numbers below `end`."""
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
