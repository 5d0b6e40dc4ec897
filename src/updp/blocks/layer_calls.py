"""Calls of layers, recorded while a part of a block runs: what each is given and gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from updp.blocks.modules import hooks

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class LayerCall(Generic[M]):
    """A call of a module by one tensor `x`; `y` is what it returns, or the first of that."""

    name: str
    module: M
    x: Tensor
    y: Tensor


@contextmanager
def recorded_calls(modules: Mapping[str, M]) -> Iterator[list[LayerCall[M]]]:
    """Context in which the calls of modules (by name) are added to a list, in order.

    Tensors are copied, for a later operation may overwrite them.
    """
    calls: list[LayerCall[M]] = []

    def watch(name: str, module: M) -> RemovableHandle:
        def hook(m: M, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> None:
            x = next(iter((*args, *kwargs.values())), None)
            y = y[0] if isinstance(y, tuple) and y else y
            if isinstance(x, Tensor) and isinstance(y, Tensor):
                calls.append(LayerCall(name, m, x.clone(), y.clone()))

        return module.register_forward_hook(hook, with_kwargs=True)

    with hooks(watch(name, module) for name, module in modules.items()):
        yield calls
