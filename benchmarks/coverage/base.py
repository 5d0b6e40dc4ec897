"""A network of another library with an example of what it takes."""

from dataclasses import dataclass

from torch import nn

from updp.blocks.nested import Samples
from updp.tasks import Task

_ANY = Task()


@dataclass(frozen=True)
class Network:
    """A model, two samples of what it takes, and what is compared of what it returns."""

    model: nn.Module
    example: Samples
    task: Task = _ANY  # whatever a model returns is compared
