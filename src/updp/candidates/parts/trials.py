"""Trial runs on copies of a block, to test what was read of it, and their precisions."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from updp.blocks.copying import copy_module
from updp.blocks.modules import UserCodeError, cast, to_eval

_log = logging.getLogger(__name__)
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Precision:
    """Dtype of a trial; results with a relative difference below `tolerance` count as equal."""

    dtype: torch.dtype
    tolerance: float

    def copy(self, module: M) -> M:
        """A copy of a module in this precision, in evaluation mode."""
        return to_eval(cast(copy_module(module), self.dtype))


FLOAT64, FLOAT32 = Precision(torch.float64, 1e-9), Precision(torch.float32, 1e-4)


def in_precision(trial: Callable[[Precision], T]) -> T:
    """Result of a trial in float64, else in float32: some forwards cast to float32 themselves.

    Raises UserCodeError if the user's code fails in both.
    """
    try:
        return trial(FLOAT64)
    except UserCodeError as error:
        _log.debug("tried in float32, as it fails in float64: %s", error)
        return trial(FLOAT32)
