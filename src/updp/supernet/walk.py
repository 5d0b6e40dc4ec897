"""From one module of a network to the next, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from updp.supernet.partial import Inputs, Resumable, bytes_of, copied

Observer = Callable[..., None]  # what a module is called with: its input and extras


@contextmanager
def tapped(seen: Mapping[nn.Module, Observer]) -> Iterator[None]:
    """Call `seen` of a module with a copy of its arguments, the first time that it runs."""
    handles, done = [], set()

    def hook(module: nn.Module, args: Inputs) -> None:
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
    """Runs `net` on `batches` of images (N, C, H, W) until one of its `modules`, then the next.

    What reaches a module is kept, unless that takes more than so many `megabytes` for all batches;
    from there on it goes to the next one, where the network can be entered there.
    """

    def __init__(
        self,
        net: nn.Module,
        modules: Collection[nn.Module],
        batches: Sequence[Tensor],
        megabytes: int,
    ) -> None:
        self.batches, self.room = batches, megabytes * 2**20
        self._net = Resumable(net, modules)
        self._calls: dict[nn.Module, int] = {}  # the number of each one's first
        self._enterable: set[nn.Module] = set()
        # By batch: the last module at which it can be entered, and a later one asked for.
        self._kept: list[list[tuple[nn.Module, Inputs]]] = [[] for _ in batches]
        self._try(set(modules), batches[0][:2])

    def to(self, module: nn.Module) -> Iterator[Inputs]:
        """The arguments of the module's first call, batch by batch.

        What runs before the module that was asked for before must be as it was then.
        """
        for number, images in enumerate(self.batches):
            kept = self._kept[number]
            if kept and kept[-1][0] is module:
                yield copied(kept[-1][1])
                continue
            kept = [(m, given) for m, given in kept if m in self._enterable]
            given = self._reaching(module, images, kept)
            now = [(module, given)] if module in self._enterable else [*kept, (module, given)]
            others = sum(map(bytes_of, self._kept)) - bytes_of(self._kept[number])
            self._kept[number] = now if others + bytes_of(now) <= self.room else kept
            yield copied(given)

    def _try(self, modules: set[nn.Module], images: Tensor) -> None:
        """See where the network can be entered."""
        found: dict[nn.Module, Inputs] = {}

        def seen(number: int, unit: nn.Module, args: Inputs) -> None:
            if unit in modules and unit not in found:
                self._calls[unit], found[unit] = number, copied(args)

        output = self._net.run(images, seen)
        for module, given in found.items():
            if self._net.can_enter(self._calls[module], given, images, output):
                self._enterable.add(module)

    def _reaching(
        self, module: nn.Module, images: Tensor, kept: list[tuple[nn.Module, Inputs]]
    ) -> Inputs:
        """What the module is given, from the entrance on that is kept, if one is."""

        def seen(number: int, unit: nn.Module, args: Inputs) -> None:
            if unit is module:
                raise _Reached(copied(args))

        entrance = [(self._calls[m], given) for m, given in kept]
        try:
            self._net.run(images, seen, *(entrance[0] if entrance else ()))
        except _Reached as reached:
            return reached.given
        raise AssertionError(f"{type(module).__name__} was not reached")


class _Reached(Exception):
    """Ends a forward at the module that was asked for."""

    def __init__(self, given: Inputs) -> None:
        super().__init__()
        self.given = given
