"""A model as a function from its input tensors, by position, to its relevant output."""

import inspect
import keyword
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from updp.blocks.nested import ModelInputs, Samples, map_leaves, named_tensors, tensors_in
from updp.tasks import Task

INPUT = "images"  # name of a single input
PREFIX = "model."  # prefix of the names of the user's modules in a `PlainModel`


class PlainModel(nn.Module):
    """A model whose forward takes only tensors; `example` shows their places in the real inputs.

    Runtimes support neither argument names nor tuples and dictionaries of tensors.
    """

    def __init__(self, model: nn.Module, task: Task, example: Samples) -> None:
        super().__init__()
        self.model, self._task = model, task
        self._slots = map_leaves(Tensor, _Slots(), example)

    def forward(self, *tensors: Tensor) -> Any:
        """The relevant outputs."""
        filled = map_leaves(_Slot, lambda slot: tensors[slot.number], self._slots)
        return self._task.run(self.model, filled)


@dataclass(frozen=True)
class _Slot:
    number: int


class _Slots:
    """Replaces tensors by consecutive numbers."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, tensor: Tensor) -> _Slot:
        self.count += 1
        return _Slot(self.count - 1)


def by_position(inputs: Samples) -> Samples:
    """Inputs for a `PlainModel`: a single tensor as it is, else all tensors in order."""
    return inputs if isinstance(inputs, Tensor) else ModelInputs(tuple(tensors_in(inputs)))


def input_names(model: nn.Module, inputs: Samples) -> tuple[str, ...]:
    """Names of several inputs: keywords, or the names of the forward's positional arguments.

    A single input is called `images`.
    """
    if isinstance(inputs, Tensor):
        return (INPUT,)
    arguments = list(inspect.signature(model.forward).parameters)
    names: list[str] = []
    for path, _ in named_tensors(inputs):
        kind, _, key = path.partition(".")
        if kind == "args":
            place, _, rest = key.partition(".")
            argument = arguments[int(place)] if int(place) < len(arguments) else "input"
            key = f"{argument}.{rest}" if rest else argument
        name = "".join(c if c.isalnum() else "_" for c in key)
        taken = names.count(name) or keyword.iskeyword(name) or not name.isidentifier()
        names.append(f"input_{len(names)}" if taken else name)
    return tuple(names)
