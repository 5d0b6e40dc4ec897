"""Peak memory of one forward: bytes of activations, counted from the operators, not sampled.

Every operator's outputs count until their storage is freed, so the result needs no device and is
always the same. Workspaces inside an operator and rounding by an allocator are not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from updp.blocks.modules import hooks
from updp.blocks.nested import call


@dataclass(frozen=True)
class Memory:
    """Memory of one forward, in bytes."""

    peak: int  # peak of activations, including the inputs
    inputs: int
    weights: int  # parameters and buffers

    @property
    def own(self) -> int:
        """The peak without the inputs, which exist anyway."""
        return self.peak - self.inputs


@dataclass
class SiteMemory:
    """Bytes of activations when a submodule is entered (with its input), and at its peak.

    If it is called several times, each value is the maximum.
    """

    entry: int
    peak: int


def peak_memory(module: nn.Module, *inputs: Any) -> Memory:
    """Memory of one forward of `module`, in evaluation mode, on copies of `inputs`."""
    live = _run(module, {}, inputs)
    weights = _storages([*module.parameters(), *module.buffers()])
    return Memory(live.outside.peak, live.outside.entry, sum(s.nbytes() for s in weights))


def live_at(
    model: nn.Module, modules: Mapping[str, nn.Module], *inputs: Any
) -> tuple[int, dict[str, SiteMemory]]:
    """Peak memory of one forward outside of the named submodules, and memory inside each.

    If some submodules are replaced, the model's peak is the maximum of the peak outside and, for
    each submodule, its `entry` plus what it adds (`Memory.own` of a replacement). This holds as
    long as each returns a new tensor: neither its input nor a view of it.

    Submodules that are never called are left out.
    """
    live = _run(model, modules, inputs)
    return live.outside.peak, live.sites


def _run(model: nn.Module, modules: Mapping[str, nn.Module], inputs: tuple[Any, ...]) -> _Live:
    assert not model.training, "the model is in training mode"
    inputs = tree_map_only(Tensor, lambda x: x.detach().clone(), inputs)
    live = _Live(inputs)
    entering = [m.register_forward_pre_hook(lambda *_: live.enter()) for m in modules.values()]
    leaving = [m.register_forward_hook(partial(live.leave, n)) for n, m in modules.items()]
    # Not in inference mode, where composite operators are not split into the operators they call.
    with hooks((*entering, *leaving)), torch.no_grad(), live:
        call(model, *inputs)
    return live


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live activations, and their peak outside of submodules and in each."""

    def __init__(self, inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}
        self._bytes = 0
        self._open: list[SiteMemory] = []  # submodules that are running now
        self.sites: dict[str, SiteMemory] = {}
        self.outside = SiteMemory(0, 0)
        for storage in _storages(inputs):
            self._follow(storage, storage.nbytes())
        self.outside.entry = self._bytes

    def enter(self) -> None:
        """Record that a submodule is entered."""
        self._open.append(SiteMemory(self._bytes, self._bytes))

    def leave(self, name: str, *_: Any) -> None:
        """Record that the innermost submodule, `name`, is left."""
        call = self._open.pop()
        worst = self.sites.setdefault(name, call)
        worst.entry = max(worst.entry, call.entry)
        worst.peak = max(worst.peak, call.peak)
        self._update_peaks()  # its output is alive outside, too

    def _follow(self, storage: UntypedStorage, size: int) -> None:
        """Count `size` bytes until the storage is freed; a known storage is not counted again."""
        key = storage._cdata
        if key in self._alive:
            return

        def free(_: object) -> None:
            del self._alive[key]
            self._bytes -= size

        self._alive[key] = weakref.ref(storage, free)
        self._bytes += size
        self._update_peaks()

    def _update_peaks(self) -> None:
        for span in self._open or [self.outside]:
            span.peak = max(span.peak, self._bytes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            self._follow(storage, 0)  # unknown so far: a weight or a constant, not an activation
        result = func(*args, **kwargs or {})
        for storage in _storages(result):
            self._follow(storage, storage.nbytes())
        return result


def _storages(values: Any) -> Iterable[UntypedStorage]:
    """The distinct storages of the tensors in `values`."""
    tensors = [x for x in tree_leaves(values) if isinstance(x, Tensor)]
    return {x.untyped_storage()._cdata: x.untyped_storage() for x in tensors}.values()
