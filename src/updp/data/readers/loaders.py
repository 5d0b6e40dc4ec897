"""Data sets made from a user's own data loaders, or from data sets without a loader."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from updp.blocks.nested import tensors_in
from updp.data.images import NO_LABEL, by
from updp.data.order import spaced
from updp.data.overlap import warn_of_shared_images
from updp.data.readers.item_kinds import inputs_beside_image, is_samples
from updp.data.readers.items import as_image, as_label, describe, split_item
from updp.data.readers.loader_items import Loader, LoaderItems
from updp.data.readers.samples import LoaderSamples
from updp.data.source import Source
from updp.data.split import hold_out_test
from updp.errors import UserError
from updp.io.seeds import random_state
from updp.tasks import CLASSIFICATION, Classification, Task

_log = logging.getLogger(__name__)

_HASHED_ITEMS = 64
_MANY = 10_000  # number of items above which reading labels is slow, because each image is read


class Wrapped(LoaderItems):
    """Images of a loader with their labels.

    The module `items` lists the accepted types; images are uint8, or float32 already normalised.
    """

    def __init__(self, given: Loader, split: str, *, skip_corrupt: bool = False) -> None:
        super().__init__(given, split, skip_corrupt=skip_corrupt)
        self.listed = False  # whether the data set lists its labels
        image, label = self._item(0)
        self.size, self._dtype = (image.shape[0], image.shape[1], image.shape[2]), image.dtype
        unlabelled = [NO_LABEL] * len(self.indices)
        self.targets = unlabelled if label == NO_LABEL else self._labels()

    @property
    def normalised(self) -> bool:
        """Whether images are floats, which the loader has normalised."""
        return self._dtype != torch.uint8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._item(index)
        if image.dtype != self._dtype or image.shape != self.size:
            kinds = [str(dtype).removeprefix("torch.") for dtype in (image.dtype, self._dtype)]
            raise UserError(
                f"{self.where(index)} is {kinds[0]} {by(image.shape)}, the first one {kinds[1]} "
                f"{by(self.size)}: give all images one size and type"
            )
        if self.listed and label != self.targets[index]:
            raise UserError(
                f"{self.where(index)} has the label {label}, and its data set lists "
                f"{self.targets[index]} for it: mend its `targets`, or take them away"
            )
        self._check_has_label(index, label)
        return image, label

    def _item(self, index: int) -> tuple[Tensor, int]:
        where = self.where(index)
        raw, is_batch = self.raw(index)
        if not is_batch:
            image, label = split_item(raw, where)
        else:
            images, labels = split_item(raw, f"the collate_fn's batch of {where}")
            try:
                image, label = images[0], None if labels is None else labels[0]
            except (TypeError, IndexError, KeyError) as error:
                raise UserError(
                    f"{where}: the loader's collate_fn gives {describe(raw)}, which is no batch"
                ) from error
        return as_image(image, where), NO_LABEL if label is None else as_label(label, where)

    def _check_has_label(self, index: int, label: int) -> None:
        if (label == NO_LABEL) == self.labelled:
            raise UserError(f"{self.where(index)}: some items have labels and others none")

    def _labels(self) -> list[int]:
        """All labels: the data set's own list if a sample agrees, else read item by item."""
        listed = _listed_labels(self.dataset)
        if listed is not None:
            try:
                labels = [as_label(listed[i], self.where(n)) for n, i in enumerate(self.indices)]
                self.listed = all(
                    self._item(n)[1] == labels[n] for n in spaced(len(labels), _HASHED_ITEMS)
                )
            except (UserError, TypeError, IndexError, KeyError):
                self.listed = False  # such as the targets of a detection data set
            if self.listed:
                return labels
        if len(self) > _MANY:
            _log.warning(
                "each of %d images of the %s loader is read for its label: "
                "a list `targets` of all labels in the data set avoids this",
                len(self),
                self.split,
            )
        labels = [self._item(index)[1] for index in range(len(self))]
        for index, label in enumerate(labels):
            self._check_has_label(index, label)
        return labels


def from_loaders(
    train: Loader,
    test: Loader | None,
    *,
    skip_corrupt: bool = False,
    task: Task = CLASSIFICATION,
    arguments: frozenset[str] = frozenset(),
) -> Source:
    """Make a source from two loaders or data sets, with their batch size and workers.

    In tasks other than classification, and if items are not images or have further inputs (named
    in `arguments`, those of the model's forward), the items are read as `samples`.
    Without a test loader a tenth of the images is split off, and a warning says so. The order of
    training is updp's own, a function of the seed, so that a killed run can resume. Labels are
    indices of the model's outputs. A warning counts images that are in both. With `skip_corrupt`
    all items are read once, and unreadable ones are left out.

    Raises:
        UserError: a data set is iterable or empty, its items are not images with labels, or one
            has uint8 images and the other floats.
    """
    with random_state(0):
        wrapped = _reader(train, task, arguments, skip_corrupt=skip_corrupt)
        first = wrapped(train, "training")
        splits = _split_off(first) if test is None else (first, wrapped(test, "test"))
        digests = [[_fingerprint(images) for images in splits] for _ in range(2)]
        if splits[0].normalised != splits[1].normalised:
            kinds = ["floats" if images.normalised else "uint8" for images in splits]
            raise UserError(
                f"the training loader gives {kinds[0]} and the test loader {kinds[1]}: floats are "
                "taken as normalised and uint8 is normalised by updp, so give both alike"
            )
        _warn_of_overlap(*splits)
    # A transform with its own generator gives other pixels each time; then only labels are hashed.
    parts = [
        digest if digest == again else hashlib.sha256(_description(images)).hexdigest()
        for digest, again, images in zip(*digests, splits, strict=True)
    ]
    is_classified = isinstance(task, Classification)
    classes = 1 + max(*splits[0].targets, *splits[1].targets) if is_classified else 0
    settings = splits[0].settings
    return Source(
        train=splits[0],
        test=splits[1],
        classes=tuple(str(label) for label in range(classes)),
        fingerprint=hashlib.sha256("".join(parts).encode()).hexdigest(),
        image_size=splits[0].size,
        indexed=True,
        batch_size=settings.batch_size,
        workers=settings.workers,
        example=splits[0].example if isinstance(splits[0], LoaderSamples) else None,
    )


def _reader(
    given: Loader, task: Task, arguments: frozenset[str], *, skip_corrupt: bool
) -> Callable[..., LoaderItems]:
    """The class of the items, prepared to be called with a loader and its name."""
    samples = partial(LoaderSamples, task=task, skip_corrupt=skip_corrupt)
    if not isinstance(task, Classification) or is_samples(given):
        return samples
    if keywords := inputs_beside_image(given, "training", arguments):
        return partial(samples, keywords=keywords)
    return partial(Wrapped, skip_corrupt=skip_corrupt)


def _split_off(images: LoaderItems) -> tuple[LoaderItems, LoaderItems]:
    """Divide the items of a training loader without a test loader into two splits."""
    train, test = (images.part(indices) for indices in hold_out_test(images.targets))
    _log.warning(
        "there is no test loader: %d of the training loader's %d images are split off for it",
        len(test),
        len(images),
    )
    return train, test


def _listed_labels(dataset: Any) -> Any:
    """The labels that a data set lists without reading its images, else None."""
    if isinstance(dataset, Subset):
        whole = _listed_labels(dataset.dataset)
        return None if whole is None else [whole[int(index)] for index in dataset.indices]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1] if len(dataset.tensors) == 2 else None
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for name in ("targets", "labels"):
        labels = getattr(dataset, name, None)
        if isinstance(labels, Sequence | Tensor | np.ndarray) and len(labels) == len(dataset):
            return labels
    return None


def _description(images: LoaderItems) -> bytes:
    return f"{len(images)} {images.targets} {images.size}".encode()


def _fingerprint(images: LoaderItems) -> str:
    """Sha256 of the labels and some images; transforms always start from the same random state."""
    digest = hashlib.sha256(_description(images))
    with random_state(0):
        for index in spaced(len(images), _HASHED_ITEMS):
            digest.update(_bytes(images[index][0]))
    return digest.hexdigest()


def _bytes(inputs: Any) -> bytes:
    """The contents of all tensors, joined."""
    return b"".join(tensor.numpy().tobytes() for tensor in tensors_in(inputs))


def _warn_of_overlap(train: LoaderItems, test: LoaderItems) -> None:
    (one, first), (other, second) = _origin(train), _origin(test)
    if one is other:
        shared = len(np.intersect1d(first, second))
        if shared:
            _log.warning(
                "%d of %d test images are among the training images, too (one data set, the same "
                "indices): the accuracy of this test split is not one of unseen images",
                shared,
                len(test),
            )
        return

    def contents(images: LoaderItems) -> Any:
        return lambda index: _bytes(images[index][0])

    warn_of_shared_images(contents(train), len(train), contents(test), len(test))


def _origin(images: LoaderItems) -> tuple[object, Any]:
    """The innermost data set below all `Subset`s, and the indices in it."""
    dataset, indices = images.dataset, images.indices
    while isinstance(dataset, Subset):
        indices = np.asarray(dataset.indices)[indices]
        dataset = dataset.dataset
    return dataset, indices
