"""Record calls that create a tensor, even if all their arguments are constants."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from updp.blocks.tracing.tracer import Tracer

# Functions that create a tensor. The graph calls them again, because it cannot hold tensors.
_NAMES = (
    *("tensor", "as_tensor", "from_numpy", "scalar_tensor", "zeros", "ones", "full", "empty"),
    *("arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices"),
)
MAKERS = {name: getattr(torch, name) for name in _NAMES}


class Makers(TorchFunctionMode):
    """Records calls that create a tensor, even if all their arguments are constants."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        maker = MAKERS.get(getattr(func, "__name__", ""))
        if not self._tracer.computing and maker is not None and maker == func:
            with suppress(NotImplementedError):  # an argument that cannot be part of a graph
                return self._tracer.create_proxy("call_function", maker, args, kwargs or {})
        return func(*args, **(kwargs or {}))
