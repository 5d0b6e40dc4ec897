"""The data of a stage: splits and batches, preprocessed and on the model's device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from updp.data import Augment, Batches, Preprocess, Source, hold_out
from updp.errors import UserError
from updp.io.seeds import mix
from updp.recipe import DataSettings

CALIBRATED = 256  # images from which BatchNorm statistics are estimated


class Feed:
    """Training batches, images held out of the training split, and the test split.

    Calibration, search and recalibration see held-out images only; the test split is for the
    final table. Images are float (N, C, H, W) and labels (N,).
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        recipe: DataSettings,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.preprocess, self.device, self.seed = preprocess, device, seed
        self.classes, self.image_size = len(source.classes), source.image_size
        images = len(source.train)
        held_out = min(500, images // 5) if recipe.held_out is None else recipe.held_out
        count = min(1000, images // 4) if recipe.calibration is None else recipe.calibration
        if held_out + count > images // 2:
            raise UserError(
                f"data.held_out={held_out} and data.calibration={count} are more than half of the "
                f"{images} training images: ask for fewer"
            )
        if min(held_out, count) < 2:
            raise UserError(f"{images} training images are too few to hold any out")
        train, held = hold_out(images, source.train.targets, held_out + count, seed)
        side = min(preprocess.input_size[1:])
        shift = side // 8 if recipe.shift is None else recipe.shift
        # A user's own loaders do; then it is not known how.
        self.normalised = source.train[0][0].is_floating_point()
        flip = source.image_size[0] == 3 if recipe.flip is None else recipe.flip
        # Users' loaders that normalise usually augment as well.
        plain = self.normalised and recipe.shift is None and recipe.flip is None
        self._augment = Augment() if plain else Augment(shift, flip)
        size = recipe.batch_size
        batches = partial(Batches, seed=seed, num_workers=recipe.workers)
        self._train = batches(source.train, train, size, shuffle=True)
        self._train_all = batches(source.train, None, size, shuffle=True)
        self._calibration = batches(source.train, held[:count], 4 * size, shuffle=False)
        self._held_out = batches(source.train, held[count:], 4 * size, shuffle=False)
        self._test = batches(source.test, None, 4 * size, shuffle=False)

    def with_held_out(self) -> Feed:
        """A feed whose training batches take in the held-out images."""
        other = copy.copy(self)
        other._train = self._train_all
        return other

    @property
    def steps(self) -> int:
        """Training batches per epoch."""
        return len(self._train)

    def training(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless augmented batches from `step` on: a pure function of seed and step."""
        epoch, start = divmod(step, self.steps)
        while True:
            for images, labels in self._train.epoch(epoch, start):
                generator = torch.Generator().manual_seed(mix(self.seed, 1, step))
                images, labels = self._move(images, labels)
                yield self.preprocess(self._augment(images, generator)), labels
                step += 1
            epoch, start = epoch + 1, 0

    def calibration(self, limit: int = CALIBRATED) -> list[Tensor]:
        """The first `limit` calibration images at most, in batches of almost equal size.

        A short last batch would skew BatchNorm statistics, and one image alone may have none.
        """
        parts, seen = [], 0
        for images, _ in self._fixed(self._calibration):
            parts.append(images[: limit - seen])
            seen += len(parts[-1])
            if seen >= limit:
                break
        return list(torch.cat(parts).tensor_split(len(parts)))

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of held-out images and labels, for scores."""
        return self._fixed(self._held_out)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the test split."""
        return self._fixed(self._test)

    def _fixed(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches.epoch(0):
            images, labels = self._move(images, labels)
            yield self.preprocess(images), labels

    def _move(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images.to(self.device), labels.to(self.device)
