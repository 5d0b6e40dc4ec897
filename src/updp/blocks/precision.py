"""Check that a model which was converted to float64 computes in float64 throughout."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from updp.blocks.modules import UserCodeError, call_user_code, describe_module, hooks
from updp.blocks.nested import Samples, call, map_tensors
from updp.blocks.values import tensors_of


@torch.no_grad()
def why_not_float64(model: nn.Module, images: Samples) -> str:
    """Reason why a model with float64 weights does not compute in float64; empty if it does.

    The reason is either an exception, for example because a forward makes a float32 tensor, or the
    first rounding to less than float64; it names the innermost module in which that happens.
    """
    running: list[str] = []
    watcher = _TypeWatcher(running)

    def enter(name: str, *_: Any) -> None:
        running.append(name)

    def leave(*_: Any) -> None:
        running.pop()

    def watch() -> Iterator[RemovableHandle]:
        for name, module in model.named_modules():
            yield module.register_forward_pre_hook(partial(enter, name))
            yield module.register_forward_hook(leave)

    with hooks(watch()), watcher:
        try:
            call_user_code(call, model, map_tensors(_doubled, images))
        except UserCodeError as error:
            where = describe_module(model, running[-1] if running else "")
            return f"{where} fails in float64 ({error})"
    if not watcher.found:
        return ""
    return f"{describe_module(model, watcher.found[-1])} computes in {watcher.dtype}"


def _doubled(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x.clone()


class _TypeWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which modules are running at the first rounding to less than float64."""

    def __init__(self, running: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running = running
        self.found: list[str] = []
        self.dtype = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **kwargs or {})
        if not self.found and any(t.dtype == torch.float64 for t in tensors_of(args)):
            for value in tensors_of(result):
                if value.is_floating_point() and value.element_size() < 8:
                    self.found, self.dtype = self.running[:] or [""], str(value.dtype)[6:]
        return result
