"""Items of a user's data set, as its loader would return them."""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset

from updp.blocks.modules import UserCodeError, call_user_code
from updp.data.images import Images
from updp.data.readers.corrupt import error_of, readable
from updp.data.readers.samplers import settings_of
from updp.errors import UserError, reason

Loader = DataLoader[Any] | Dataset[Any] | list[Any]  # a list of items is a data set


class LoaderItems(Images):
    """Items of a map-style data set, selected by its loader's sampler, joined by its `collate_fn`.

    Raises UserError if the data set is iterable or empty, or its first item cannot be read.
    """

    def __init__(self, given: Loader, split: str, *, skip_corrupt: bool = False) -> None:
        self.dataset: Any = given.dataset if isinstance(given, DataLoader) else given
        if isinstance(self.dataset, Mapping) or not _has_any(
            self.dataset, "__iter__", "__getitem__"
        ):
            raise UserError(
                f"the {split} images are of the type {type(self.dataset).__name__}: give a loader "
                "or a data set (__len__, and __getitem__ by number)"
            )
        if isinstance(self.dataset, IterableDataset) or not (
            hasattr(self.dataset, "__getitem__") and hasattr(self.dataset, "__len__")
        ):
            raise UserError(
                f"the {split} loader's {type(self.dataset).__name__} is iterable: a killed run "
                "resumes in the order it had, which needs a map-style data set (__len__ and "
                "__getitem__)"
            )
        try:
            len(self.dataset)  # type: ignore[arg-type]
        except Exception as error:  # the user's own code
            raise UserError(
                f"the {split} loader's {type(self.dataset).__name__} does not say how many items "
                f"it has ({reason(error)}): mend its __len__"
            ) from error
        self.split, self.settings = split, settings_of(given, f"the {split} loader")
        self.indices = self.settings.indices
        if not len(self.indices):
            raise UserError(f"the {split} loader's data set is empty")
        if skip_corrupt:
            errors = (error_of(self._item, index) for index in range(len(self.indices)))
            self.indices = self.indices[readable(errors, f"the {split} loader")]
        self.targets = [0] * len(self.indices)  # placeholder, as it gives the length

    @property
    @abstractmethod
    def normalised(self) -> bool:
        """Whether inputs are ready for the model, not 8-bit pixels still to be normalised."""

    @abstractmethod
    def _item(self, index: int) -> tuple[Any, Any]:
        """Inputs and labels of an item. Raises UserError: they cannot be used."""

    def part(self, indices: NDArray[np.int64]) -> Self:
        """A selection of the items, by index."""
        part = copy.copy(self)
        part.indices = self.indices[indices]
        part.targets = [self.targets[index] for index in indices]
        return part

    def where(self, index: int) -> str:
        """Name of an item in errors."""
        return f"item {self.indices[index]} of the {self.split} loader"

    def raw(self, index: int) -> tuple[Any, bool]:
        """An item as the data set returns it, or a batch of one item made by the `collate_fn`.

        Returns:
            The item or the batch, and whether it is a batch.
        """
        try:
            item = call_user_code(lambda: self.dataset[int(self.indices[index])])
            if self.settings.collate is None:
                return item, False
            return call_user_code(self.settings.collate, [item]), True
        except UserCodeError as error:
            raise UserError(
                f"{self.where(index)} cannot be read ({error}): mend the data set, or leave such "
                "items out with data.skip_corrupt=true"
            ) from error


def _has_any(value: Any, *names: str) -> bool:
    return any(hasattr(value, name) for name in names)
