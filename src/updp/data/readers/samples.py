"""Samples of any form from a user's loader: inputs of a model with the labels of its task.

Inputs are a tensor, or a tuple or dictionary of tensors (given to the model by position or by
keyword); labels are whatever the task compares with. Numbers and NumPy arrays become tensors.
Pillow images and 8-bit pixels are normalised like those of classifiers. Arrays of pixels (for
tasks that take images, any arrays) may have their channels last.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from updp.blocks.modules import UserCodeError, call_user_code
from updp.blocks.nested import Samples, as_samples, map_leaves, map_tensors, take, tensors_in
from updp.data.images import NO_LABEL
from updp.data.order import spaced
from updp.data.readers.items import as_image, as_label, as_label_picture, describe
from updp.data.readers.loader_items import Loader, LoaderItems
from updp.errors import UserError
from updp.tasks import CausalLM, Classification, Task

_CHECKED = 256  # number of items whose labels are checked at the start
_EXAMPLES = 8  # number of samples kept to trace and time a model on
_LEAVES = (Image.Image, np.ndarray, np.generic, bool, int, float, Tensor)


class LoaderSamples(LoaderItems):
    """Items of a loader as inputs and labels of a task; all have the same form, to make batches.

    `keywords` are the entries of a dictionary that are inputs; by default all but the labels.
    """

    def __init__(
        self,
        given: Loader,
        split: str,
        task: Task,
        *,
        keywords: frozenset[str] | None = None,
        skip_corrupt: bool = False,
    ) -> None:
        self.task, self._keywords = task, keywords
        self._fault_of_labels: Callable[[Any], str] = task.fault_of_labels
        super().__init__(given, split, skip_corrupt=skip_corrupt)
        first, labels = self._item(0)
        self._form = "" if task.is_ragged else _form(first)
        # A task's own `collate` may pad labels, so only the default needs equal shapes.
        self._label_form = _shapes(labels) if type(task).collate is Task.collate else None
        self._first = first
        self.size = tuple(first.shape) if isinstance(first, Tensor) else ()
        if labels is None:
            self.targets = [NO_LABEL] * len(self.indices)
        elif isinstance(task, Classification):
            self.targets = [self._item(index)[1] for index in range(len(self.indices))]

    @property
    def normalised(self) -> bool:
        """Whether inputs are ready for the model, not 8-bit pixels still to be normalised."""
        first = self._first
        return not (isinstance(first, Tensor) and first.dtype == torch.uint8 and first.ndim == 3)

    @property
    def example(self) -> Samples | None:
        """A few inputs, if random images cannot replace them; else None."""
        first = self._first
        if isinstance(first, Tensor) and (first.is_floating_point() or not self.normalised):
            return None
        return self.collate([self[index] for index in range(min(_EXAMPLES, len(self)))])[0]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        inputs, labels = self._item(index)
        where = self.where(index)
        if self._form and (form := _form(inputs)) != self._form:
            raise UserError(
                f"{where} is {form}, the first one {self._form}: give all inputs one size and "
                "type (text is padded to one length)"
            )
        if self.labelled != (labels is not None):
            raise UserError(f"{where} and the first one differ in whether they have labels")
        if self._label_form not in (None, form := _shapes(labels)):
            raise UserError(
                f"{where} has labels of {form}, the first one of {self._label_form}: give all "
                "labels one shape"
            )
        return inputs, NO_LABEL if labels is None else labels

    def collate(self, items: list[tuple[Any, Any]]) -> tuple[Samples, Any]:
        """Make a batch from items, with the task's `collate`."""
        inputs, labels = zip(*items, strict=True)
        try:
            batch = as_samples(call_user_code(self.task.collate, [*inputs]))
            if not self.labelled:
                return batch, torch.tensor(labels)
            return batch, call_user_code(self.task.collate, [*labels])
        except UserCodeError as error:
            raise UserError(f"items of the {self.split} loader make no batch: {error}") from error

    def check_labels(self, fault_of: Callable[[Any], str]) -> None:
        """Use a stricter check of labels from now on, and apply it to some items at once.

        Raises UserError if an item's labels fail it.
        """
        self._fault_of_labels = fault_of
        for index in spaced(len(self), _CHECKED):
            self._item(index)

    def _item(self, index: int) -> tuple[Any, Any]:
        where = self.where(index)
        raw, is_batch = self.raw(index)
        if isinstance(raw, tuple) and len(raw) > 2 and _splits_pairs(self.task):
            raise UserError(
                f"{where} is {describe(raw)}, which does not tell inputs from labels: give "
                "((a, b), labels), or ((a, b, c),) where there are none"
            )
        try:
            inputs, labels = call_user_code(self.task.split, raw)
        except UserCodeError as error:
            raise UserError(f"{where} is {describe(raw)}: {error}") from error
        if is_batch:
            inputs, labels = (only_sample(part, where) for part in (inputs, labels))
        if self._keywords is not None and isinstance(inputs, Mapping):
            inputs = {key: value for key, value in inputs.items() if key in self._keywords}
        if _is_picture(inputs, self.task):
            inputs = as_image(inputs, where)
        inputs = as_tensors(inputs, where)
        labels = as_tensors(labels, where, picture=as_label_picture)
        if not tensors_in(inputs):
            raise UserError(f"{where} is {describe(raw)}: it holds no tensor for the model")
        for tensor in tensors_in(inputs):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise UserError(
                    f"{where} has values that are NaN or infinite: mend it, or leave it out with "
                    "data.skip_corrupt=true"
                )
        if isinstance(self.task, Classification) and labels is not None:
            labels = as_label(labels, where)
        elif fault := self._fault_of_labels(labels):
            raise UserError(f"{where}: {fault}")
        return inputs, labels


def _splits_pairs(task: Task) -> bool:
    """Whether a task splits pairs (inputs, labels); for an embedding all parts may be inputs."""
    return type(task) is not Task and type(task).split in (Task.split, CausalLM.split)


def _is_picture(inputs: Any, task: Task) -> bool:
    """Whether an input is an array of pixels (C, H, W) or (H, W, C)."""
    if not isinstance(inputs, np.ndarray) or inputs.ndim != 3:
        return False
    return inputs.dtype == np.uint8 or (task.takes_images and inputs.dtype.kind in "fu")


def only_sample(batch: Any, where: str) -> Any:
    """The only sample in a batch made by a `collate_fn`."""
    if batch is None:
        return None
    if isinstance(batch, tuple | list) and len(batch) == 1:  # for example tuple(zip(*items))
        return batch[0]
    try:
        return take(batch, 0)
    except (TypeError, IndexError, KeyError) as error:
        raise UserError(
            f"{where}: the loader's collate_fn gives {describe(batch)}, which is no batch"
        ) from error


def as_tensors(
    value: Any, where: str, picture: Callable[[Image.Image, str], Tensor] = as_image
) -> Any:
    """Convert numbers, arrays and pictures to tensors; floats become float32."""

    def convert(leaf: Any) -> Tensor:
        if isinstance(leaf, Image.Image):
            return picture(leaf, where)
        if isinstance(leaf, np.ndarray):
            native = np.ascontiguousarray(leaf, leaf.dtype.newbyteorder("="))
            leaf = torch.from_numpy(native.copy())
        tensor = torch.as_tensor(leaf).detach()
        return tensor.float() if tensor.is_floating_point() else tensor

    return map_leaves(_LEAVES, convert, _without_lists(value))


def _without_lists(value: Any) -> Any:
    """Convert lists of numbers, such as tokens, to arrays: in an item they are one value."""
    if isinstance(value, Mapping):
        return {key: _without_lists(part) for key, part in value.items()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(_without_lists, value))
    if isinstance(value, list):
        array = np.asarray(value) if _is_numbers(value) else None
        return value if array is None else array
    return value


def _is_numbers(value: list[Any]) -> bool:
    """Whether a list contains only numbers, or lists of numbers of equal length."""
    if all(isinstance(part, list) for part in value):
        return len({len(part) for part in value}) == 1 and all(map(_is_numbers, value))
    return all(isinstance(part, bool | int | float) for part in value)


def _shapes(labels: Any) -> str:
    """Shapes of nested tensors as text; their types may differ, as in labels 1 and 0.5."""
    return ", ".join(str(tuple(x.shape)) for x in tensors_in(labels)) or "no numbers"


def _form(inputs: Any) -> str:
    """Shapes and types of nested tensors, as text."""
    texts: list[str] = []
    map_tensors(
        lambda x: texts.append(f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"), inputs
    )
    return ", ".join(texts)
