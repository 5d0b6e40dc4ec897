"""Augmentation: random shifts and flips of whole batches, or timm's training transforms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from updp.blocks.nested import Samples, tensors_in
from updp.data.images import Images, InMemory, by
from updp.data.preprocess import Preprocess
from updp.data.source import Source
from updp.errors import UserError
from updp.io import processes
from updp.recipe import DataSettings
from updp.tasks import CLASSIFICATION, Task

_ELSEWHERE = "leave it out, and augment in your data set"


@dataclass(frozen=True)
class Augment:
    """Shifts each image by up to `shift` pixels, filling in zeros, and may mirror it."""

    shift: int = 0
    flip: bool = False

    def __call__(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Augment (N, C, H, W) of any dtype; all randomness comes from `generator`.

        Each of several processes draws for the whole batch and uses the part for its own images.
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
    """Complete pictures under a random `transform`, reread at every access."""

    draws: ClassVar[bool] = True

    def __init__(self, images: Images, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.transform = images, transform
        self.targets, self.size = images.targets, images.size
        # Complete pictures are read from files again, even if resized images are in memory.
        stored = images.whole if isinstance(images, InMemory) and images.whole else images
        self.groups = stored.groups

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        picture, label = self.images.picture(index)
        return self.transform(picture), label

    def collate(self, items: list[tuple[Any, Any]]) -> tuple[Samples, Any]:
        """Make a batch from items, like the images do."""
        return self.images.collate(items)


@dataclass(frozen=True)
class Augmentation:
    """Changes of training images: shifts of whole batches, or a transform of each picture."""

    words: str
    moves: Augment = Augment()
    transform: Callable[[Image.Image], Tensor] | None = None

    def of(self, images: Images) -> Images:
        """The images under the transform, if there is one."""
        return images if self.transform is None else Augmented(images, self.transform)


def find_augmentation(
    settings: DataSettings, source: Source, preprocess: Preprocess | None, task: Task
) -> Augmentation:
    """The augmentation that the settings ask for, else the default for such images.

    Args:
        settings: data settings of the recipe.
        source: the source of the training images.
        preprocess: their normalisation; None if samples are not images (C, H, W).
        task: the purpose of the model.

    Raises:
        UserError: an augmentation in the settings does not suit the images or their labels.
    """
    if preprocess is None:
        if said := settings.asks_for_timm or settings.asks_for_moves:
            raise UserError(f"{said} is for images, and a sample is {source.form}: {_ELSEWHERE}")
        return Augmentation("samples as the loader gives them")
    if settings.asks_for_timm:
        found = _timm_augmentation(settings, preprocess)
        check_movable(found.of(source.train)[0][1], settings)
        return found
    if source.labelled and task != CLASSIFICATION:
        if said := settings.asks_for_moves:
            raise UserError(f"{said} is for images of classifiers: {_ELSEWHERE}")
        return Augmentation("samples as the loader gives them")
    # Loaders that normalise usually augment as well.
    if source.normalised and settings.shift is None and settings.flip is None:
        return Augmentation("images as the loader gives them")
    return _moves(settings, source.image_size)


def _moves(settings: DataSettings, size: Sequence[int]) -> Augmentation:
    """Shift and flip of images (C, H, W). Raises UserError if the shift is too large."""
    channels, *sides = size
    shift = min(sides) // 8 if settings.shift is None else settings.shift
    if shift >= min(sides):
        raise UserError(
            f"data.shift={shift} moves images of {by(size)} out of sight: give less than "
            f"{min(sides)}"
        )
    flip = channels == 3 if settings.flip is None else settings.flip
    parts = [f"shifted by up to {shift} pixels (data.shift)"] if shift else []
    parts += ["mirrored at random (data.flip)"] if flip else []
    return Augmentation(
        "images are " + (" and ".join(parts) or "not augmented"), Augment(shift, flip)
    )


def check_movable(label: Any, settings: DataSettings) -> None:
    """Raise UserError for labels that would have to be cropped with the image.

    These are maps, and boxes (rows of numbers); numbers for the whole picture stay valid.
    """
    if isinstance(label, (list, tuple)) and any(isinstance(x, (Tensor, Sequence)) for x in label):
        raise UserError(
            f"timm's training transforms crop pictures and do not move {len(label)} boxes with "
            f"them: leave {settings.asks_for_timm} out, and augment in your data set"
        )
    if places := [x for x in tensors_in(label) if x.ndim > 1]:
        raise UserError(
            f"timm's training transforms crop pictures and do not move labels of "
            f"{by(places[0].shape)} with them: leave {settings.asks_for_timm} out, and augment in "
            "your data set"
        )


def _timm_augmentation(settings: DataSettings, preprocess: Preprocess) -> Augmentation:
    """timm's training transform, from a picture to an image (C, H, W).

    The image is uint8; with random erasing, which acts after normalisation, normalised floats.
    """
    given = settings.timm_transform()
    transform = create_transform(
        preprocess.input_size[1:],
        is_training=True,
        mean=preprocess.mean,
        std=preprocess.std,
        normalize=given["re_prob"] > 0,
        **given,
    )
    told = {name: value for name, value in given.items() if value is not None}
    if not told["re_prob"]:
        told = {name: value for name, value in told.items() if not name.startswith("re_")}
    words = ", ".join(f"{name} {_short(value)}" for name, value in told.items())
    return Augmentation(f"timm's training transform ({words})", transform=transform)


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
