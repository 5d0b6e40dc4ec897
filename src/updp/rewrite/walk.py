"""From one module of a network to the next, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Seen = Callable[..., None]  # what a module is called with: its input and extras
Given = tuple[Any, ...]


@contextmanager
def tapped(seen: Mapping[nn.Module, Seen]) -> Iterator[None]:
    """Call `seen` of a module with a copy of its arguments, the first time that it runs."""
    handles, done = [], set()

    def hook(module: nn.Module, args: Given) -> None:
        if module not in done:
            done.add(module)
            seen[module](args[0].clone(), *args[1:])

    for module in seen:
        handles.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Walk:
    """Runs `net` on `batches` of images (N, C, H, W) until a module, and tells what reaches it.

    That is kept while the same module is asked for, unless it takes more than so many `megabytes`.
    """

    def __init__(self, net: nn.Module, batches: Sequence[Tensor], megabytes: int) -> None:
        self.net, self.batches, self.room = net, batches, megabytes * 2**20
        self._at: nn.Module | None = None
        self._kept: list[Given] = []

    def to(self, module: nn.Module) -> Iterator[Given]:
        """The arguments of the module's first call, batch by batch.

        What runs before the module must be as it was when it was asked for the last time.
        """
        if self._at is module and len(self._kept) == len(self.batches):
            for x, *extras in self._kept:
                yield x.clone(), *extras
            return
        self._at, self._kept = module, []
        used = 0
        for images in self.batches:
            given = _reaching(self.net, module, images)
            used += sum(t.nbytes for t in tree_leaves(given) if isinstance(t, Tensor))
            if used <= self.room:
                self._kept.append((given[0].clone(), *given[1:]))
            yield given


class _Reached(Exception):
    """Ends a forward at the module that was asked for."""


def _reaching(net: nn.Module, module: nn.Module, images: Tensor) -> Given:
    found: list[Given] = []

    def stop(*args: Any) -> None:
        found.append(args)
        raise _Reached

    with tapped({module: stop}):
        try:
            net(images)
        except _Reached:
            return found[0]
    raise AssertionError(f"{type(module).__name__} was not reached")
