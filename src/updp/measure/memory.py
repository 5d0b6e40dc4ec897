"""Memory of one forward: bytes of activations alive at the worst moment, counted, not sampled.

Every operator's outputs are followed until their storage is freed, so no device is asked, and the
figure is the same each time. What an operator allocates for itself and what an allocator rounds up
are not in it.
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


@dataclass(frozen=True)
class Memory:
    """Of one forward, in bytes.

    `peak` is what activations take at the worst moment, the inputs among them; `inputs` is what
    these take alone, `weights` what parameters and buffers take.
    """

    peak: int
    inputs: int
    weights: int

    @property
    def own(self) -> int:
        """What the forward adds, at its worst moment, to inputs that are there anyway."""
        return self.peak - self.inputs


@dataclass(frozen=True)
class SiteMemory:
    """Bytes alive when a submodule is entered, its input among them, and at most until it ends.

    Of a submodule that is called several times, each is the largest.
    """

    entry: int
    peak: int

    @property
    def own(self) -> int:
        """What it adds, at its worst moment, to what was there when it was entered."""
        return self.peak - self.entry


def peak_memory(module: nn.Module, *inputs: Any) -> Memory:
    """Memory of one forward of `module`, which is in evaluation, on copies of `inputs`."""
    live = _run(module, {}, inputs)
    weights = _storages([*module.parameters(), *module.buffers()])
    return Memory(live.outside.peak, live.outside.entry, sum(s.nbytes() for s in weights))


def live_at(
    model: nn.Module, modules: Mapping[str, nn.Module], *inputs: Any
) -> tuple[int, dict[str, SiteMemory]]:
    """The peak of one forward outside of its named submodules, and the memory at each of these.

    With some of them replaced, the model's peak is the largest of the peak outside and, for each
    submodule, its `entry` plus the `own` of what stands there (`Memory.own` of a replacement). This
    holds as long as each gives back a tensor of its own: neither its input, nor a view of that.
    A submodule that is never called is left out.
    """
    live = _run(model, modules, inputs)
    return live.outside.peak, {name: SiteMemory(s.entry, s.peak) for name, s in live.sites.items()}


def _run(model: nn.Module, modules: Mapping[str, nn.Module], inputs: tuple[Any, ...]) -> _Live:
    assert not model.training, "the model is in training mode"
    inputs = tree_map_only(Tensor, lambda x: x.detach().clone(), inputs)
    live = _Live(inputs)
    entering = [m.register_forward_pre_hook(lambda *_: live.enter()) for m in modules.values()]
    leaving = [m.register_forward_hook(partial(live.leave, n)) for n, m in modules.items()]
    # In inference mode composite operators would hide what they are made of.
    with hooks((*entering, *leaving)), torch.no_grad(), live:
        model(*inputs)
    return live


@dataclass
class _Span:
    """A part of the forward: bytes alive when it began, and at most since."""

    entry: int
    peak: int


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that are alive, and their peak outside of submodules and in each."""

    def __init__(self, inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}
        self._bytes = 0
        self._open: list[_Span] = []  # the submodules that we are in
        self.sites: dict[str, _Span] = {}
        self.outside = _Span(0, 0)
        for storage in _storages(inputs):
            self._follow(storage, storage.nbytes())
        self.outside.entry = self._bytes

    def enter(self) -> None:
        """A submodule begins."""
        self._open.append(_Span(self._bytes, self._bytes))

    def leave(self, name: str, *_: Any) -> None:
        """The innermost one, called so, has ended."""
        span = self._open.pop()
        before = self.sites.setdefault(name, span)
        before.entry = max(before.entry, span.entry)
        before.peak = max(before.peak, span.peak)
        self._reach()  # its output is alive outside too

    def _follow(self, storage: UntypedStorage, size: int) -> None:
        """Count `size` bytes until the storage is freed, unless it is known."""
        key = storage._cdata
        if key in self._alive:
            return

        def free(_: object) -> None:
            del self._alive[key]
            self._bytes -= size

        self._alive[key] = weakref.ref(storage, free)
        self._bytes += size
        self._reach()

    def _reach(self) -> None:
        for span in self._open or [self.outside]:
            span.peak = max(span.peak, self._bytes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            self._follow(storage, 0)  # a weight or a constant: it was there before
        result = func(*args, **kwargs or {})
        for storage in _storages(result):
            self._follow(storage, storage.nbytes())
        return result


def _storages(values: Any) -> Iterable[UntypedStorage]:
    """Each storage of the tensors in `values` once."""
    tensors = [x for x in tree_leaves(values) if isinstance(x, Tensor)]
    return {x.untyped_storage()._cdata: x.untyped_storage() for x in tensors}.values()
