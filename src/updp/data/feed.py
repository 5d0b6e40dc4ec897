"""The data of a stage: splits and batches, preprocessed and moved to the model's device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from updp.blocks.nested import Samples, join, map_tensors
from updp.data.batches import Batch, Batches
from updp.data.example import make_example
from updp.data.images import NO_LABEL, Images
from updp.data.preprocess import Preprocess
from updp.data.source import Source
from updp.data.split import hold_out
from updp.data.transforms import Augment, find_augmentation
from updp.errors import UserError
from updp.io import processes
from updp.io.seeds import mix
from updp.recipe import DataSettings
from updp.tasks import CLASSIFICATION, Task

CALIBRATED = 256  # number of images from which BatchNorm statistics are estimated


class Feed:
    """Training batches, images held out of the training split, and the test split.

    Calibration, search and recalibration use only held-out images; the test split is only for the
    final table. Images are float (N, C, H, W) and labels (N,), `NO_LABEL` if there are none:
    `labelled` is about the training images, `test_labelled` about the test split. In tasks other
    than classification, inputs and labels may be whatever the user's loader returns.

    Args:
        source: both splits.
        preprocess: the normalisation of uint8 images; None if there are no such images.
        settings: split, batches and augmentation.
        seed: decides the split, the order of the batches and the augmentation.
        device: device of the batches.
        task: the purpose of the model.
        sets_aside: whether some images must not be held out, to train on images that no fit has
            seen; else all training images may be held out.

    Raises:
        UserError: too many images are held out, or the augmentation does not suit the images.
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess | None,
        settings: DataSettings,
        *,
        seed: int,
        device: torch.device,
        sets_aside: bool = True,
        task: Task = CLASSIFICATION,
    ) -> None:
        self.preprocess, self.device, self.seed = preprocess, device, seed
        self.task, self.stored_example = task, source.example
        self.classes, self.image_size = len(source.classes), source.image_size
        self.labelled, self.test_labelled = source.train.labelled, source.test.labelled
        self.resize = source.train.resize
        self.normalised = source.normalised  # by a user's loaders, it is not known how
        held_out, count = _held_out(len(source.train), settings, sets_aside=sets_aside)
        train, held = hold_out(len(source.train), source.train.targets, held_out + count, seed)
        self._settings = settings
        self._augmentation = find_augmentation(settings, source, preprocess, task)
        images = self._augmentation.of(source.train)
        batches = partial(Batches, seed=seed, num_workers=settings.workers)
        size = settings.batch_size
        _check_shares(size)
        self._train = self._shuffled(images, train) if len(train) else None
        self._unlabelled: Batches | None = None
        self._train_all = self._shuffled(images, None)
        unscored = torch.cat([train, held[:count]]).sort().values
        self._train_unscored = self._shuffled(images, unscored)
        self._calibration = batches(source.train, held[:count], 4 * size, shuffle=False)
        self._held_out = batches(source.train, held[count:], 4 * size, shuffle=False)
        self._test = batches(source.test, None, 4 * size, shuffle=False, shared=True)

    def with_held_out(self, *, scored: bool = True) -> Feed:
        """A feed that also trains on the calibration images and, if `scored`, the scored ones."""
        other = copy.copy(self)
        other._train = self._train_all if scored else self._train_unscored
        return other

    def with_unlabelled(self, images: Images, share: float) -> Feed:
        """A feed in which other images make up a share of each training batch; it has no labels.

        An epoch is still one pass over the feed's own images. Each process gets an equal part of
        the other images.
        """
        assert self._train is not None
        each = self._settings.batch_size // processes.count()
        # A batch has at least one image of each kind.
        count = max(1, min(each - 1, round(share * each))) * processes.count()
        other = copy.copy(self)
        other._train = self._train.of_size(self._settings.batch_size - count)
        other._unlabelled = self._shuffled(self._augmentation.of(images), None).of_size(count)
        return other

    @property
    def augmentation(self) -> str:
        """The augmentation of training images, in words."""
        return self._augmentation.words

    @property
    def steps(self) -> int:
        """Number of training batches per epoch; 0 if all images are held out."""
        return len(self._train) if self._train else 0

    @property
    def test_steps(self) -> int:
        """Number of batches of the test split."""
        return len(self._test)

    def training(self, step: int) -> Iterator[Batch]:
        """Endless augmented batches from `step` on, as a pure function of seed and step.

        Each process gets its share of a batch's images.
        """
        assert self._train is not None
        others = self._unlabelled and self._unlabelled.endless(step)
        for number, (images, labels) in enumerate(self._train.endless(step), step):
            images = self._augmented(images, mix(self.seed, 1, number))
            if others:
                # Augmented separately, because a process has a part of both kinds.
                further = self._augmented(next(others)[0], mix(self.seed, 2, number))
                images = join([images, further])
                labels = torch.full((len(images),), NO_LABEL)
            yield self._prepared(images), self._move(labels)

    def _augmented(self, images: Samples, seed: int) -> Samples:
        """Images of a batch on the feed's device, shifted and mirrored at random."""
        images = self._move(images)
        moves = self._augmentation.moves
        if isinstance(images, Tensor) and moves != Augment():
            return moves(images, torch.Generator().manual_seed(seed))
        return images

    def training_batches(self, limit: int, parts: int) -> list[Samples]:
        """Augmented training batches (N, C, H, W) with about `limit` images, each split in parts.

        `limit` counts images of all processes; each gets its share. After an epoch they repeat.
        """
        found, seen = list[Samples](), 0
        for images, _ in self.training(0):
            # Every n-th image, so that parts are the same whether a batch is shared or not.
            found += [images[part::parts] for part in range(min(parts, len(images)))]
            seen += len(images) * processes.count()
            if seen >= limit:
                break
        return found

    def calibration(self, limit: int = CALIBRATED) -> list[Samples]:
        """At most the first `limit` calibration images, in batches of almost equal size.

        A short last batch would distort BatchNorm statistics; a single image may have none.
        """
        parts, seen = list[Samples](), 0
        for images, _ in self._fixed(self._calibration):
            parts.append(images[: limit - seen])
            seen += len(parts[-1])
            if seen >= limit:
                break
        whole: Samples = join(parts)
        shares = torch.arange(len(whole)).tensor_split(len(parts))
        return [whole[int(share[0]) : int(share[-1]) + 1] for share in shares]

    def held_out(self) -> Iterator[Batch]:
        """Batches of held-out images and labels, for scores."""
        return self._fixed(self._held_out)

    def test(self) -> Iterator[Batch]:
        """Batches of the test split, read one after the other: they need not fit into memory.

        Several processes take turns at the batches, so that each image is evaluated once.
        """
        return self._fixed(self._test)

    def _shuffled(self, images: Images, indices: Tensor | None) -> Batches:
        """Training batches of some images; None means all images."""
        return Batches(
            images,
            indices,
            self._settings.batch_size,
            seed=self.seed,
            shuffle=True,
            repeats=self._settings.aug_repeats,
            num_workers=self._settings.workers,
            pin_memory=self.device.type == "cuda",
        )

    def _fixed(self, batches: Batches) -> Iterator[Batch]:
        for images, labels in batches.epoch(0):
            images, labels = self._prepared(self._move(images)), self._move(labels)
            if isinstance(images, Tensor) and images.ndim == 4:
                # On CPUs convolutions take up to 1.7 times as long in the contiguous layout.
                images = images.contiguous(memory_format=torch.channels_last)
            yield images, labels

    def example(self, size: int) -> Samples:
        """Inputs for tracing and timing a model, see `data.example`."""
        return make_example(self.stored_example, self.image_size, size).to(self.device)

    def _prepared(self, images: Samples) -> Samples:
        if self.preprocess is None or not isinstance(images, Tensor):
            return images
        return self.preprocess(images)

    def _move(self, values: Any) -> Any:
        return map_tensors(lambda x: x.to(self.device, non_blocking=True), values)


def _check_shares(size: int) -> None:
    """Raise UserError if a batch cannot be divided evenly among the processes."""
    if size % (count := processes.count()):
        raise UserError(
            f"data.batch_size={size} is for all {count} processes together, which share it: take a "
            f"multiple of {count}"
        )


def _held_out(images: int, settings: DataSettings, *, sets_aside: bool) -> tuple[int, int]:
    """Numbers of training images held out for search scores, and for calibration.

    Raises UserError if too few are left to train on, or if there are too few to hold any out.
    """
    held_out = min(500, images // 5) if settings.held_out is None else settings.held_out
    count = settings.calibration
    if count is None:
        count = min(1000, images // 4 if sets_aside else images - held_out)
    if sets_aside and 2 * (held_out + count) >= images:
        raise UserError(
            f"data.held_out={held_out} and data.calibration={count} are half or more of the "
            f"{images} training images, and the others are trained on: ask for fewer"
        )
    if held_out + count > images:
        raise UserError(
            f"data.calibration={count} and {held_out} held-out images (data.held_out) are more "
            f"than the {images} training images: ask for fewer"
        )
    if min(held_out, count) < 2:
        enough = images > 8 if sets_aside else images >= 4
        few = ", or set data.held_out=2 and data.calibration=2" if enough else ""
        raise UserError(
            f"{images} training images are too few to hold any out: give 10 or more{few}"
        )
    return held_out, count
