"""Data sets from a user's own data loaders."""

import hashlib
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from updp.data.images import Images
from updp.data.source import Source
from updp.errors import UserError
from updp.io.seeds import random_state

_HASHED_ITEMS = 64


class Wrapped(Images):
    """A map-style data set of (tensor (C, H, W), label); float tensors are normalised already."""

    def __init__(self, dataset: Dataset[Any], split: str) -> None:
        if isinstance(dataset, IterableDataset):
            raise UserError(
                f"the {split} loader's {type(dataset).__name__} is iterable: a killed run resumes "
                "in the order it had, which needs a map-style data set (__len__ and __getitem__)"
            )
        self.dataset = dataset
        self.targets = [0] * len(dataset)  # type: ignore[arg-type]
        if not self.targets:
            raise UserError(f"the {split} loader's data set is empty")
        item = dataset[0]
        image = item[0] if isinstance(item, tuple | list) and len(item) == 2 else item
        if image is item or not isinstance(image, Tensor) or image.ndim != 3:
            raise UserError(
                f"the {split} loader's data set gives {_describe(item)}: "
                "updp needs (tensor (C, H, W), label)"
            )
        self.size = (image.shape[0], image.shape[1], image.shape[2])
        labels = getattr(dataset, "targets", None)
        if labels is None or getattr(dataset, "target_transform", None) is not None:
            labels = [dataset[index][1] for index in range(len(self))]
        self.targets = [int(label) for label in labels]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        return image, int(label)


def from_loaders(train: DataLoader[Any], test: DataLoader[Any]) -> Source:
    """Take the data sets of two loaders; batching, order and collation are updp's own.

    Classes are '0' up to the largest label.

    Raises:
        UserError: a data set is iterable or empty, or its items are not (tensor, label).
    """
    with random_state(0):  # so that random transforms hash alike in every run
        splits = Wrapped(train.dataset, "training"), Wrapped(test.dataset, "test")
        digest = hashlib.sha256()
        for images in splits:
            digest.update(f"{len(images)} {images.targets}".encode())
            for index in range(min(_HASHED_ITEMS, len(images))):
                digest.update(images[index][0].contiguous().numpy().data)
    classes = 1 + max(*splits[0].targets, *splits[1].targets)
    return Source(
        train=splits[0],
        test=splits[1],
        classes=tuple(str(label) for label in range(classes)),
        fingerprint=digest.hexdigest(),
        image_size=splits[0].size,
    )


def _describe(item: object) -> str:
    if isinstance(item, tuple | list):
        return f"({', '.join(_describe(part) for part in item)})"
    return f"tensor {tuple(item.shape)}" if isinstance(item, Tensor) else type(item).__name__
