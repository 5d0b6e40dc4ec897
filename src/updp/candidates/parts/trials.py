"""Trials of what was read of a block, on a copy of it: the precisions that they are made in."""

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
    """A precision of a trial; results that differ by less than `tolerance` (relative) are equal."""

    dtype: torch.dtype
    tolerance: float

    def copy(self, module: M) -> M:
        """A copy of a module in this precision, in evaluation mode."""
        return to_eval(cast(copy_module(module), self.dtype))


FLOAT64, FLOAT32 = Precision(torch.float64, 1e-9), Precision(torch.float32, 1e-4)


def in_precision(trial: Callable[[Precision], T]) -> T:
    """What a trial gives in float64, else in float32: some forwards change to it by themselves.

    Raises UserCodeError where the user's code fails in both.
    """
    try:
        return trial(FLOAT64)
    except UserCodeError as error:
        _log.debug("tried in float32, as it fails in float64: %s", error)
        return trial(FLOAT32)
