"""Memory layout and `torch.compile` of modules during a training stage, undone at the end."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from updp.errors import reason

_log = logging.getLogger(__name__)

# Dynamo counts the graphs per piece of code, and above this number it runs the code eagerly. All
# modules of a class share one count, and a network has as many of them as sites.
_GRAPHS = 1024


@contextmanager
def laid_out(modules: Sequence[nn.Module], layout: str) -> Iterator[None]:
    """Context in which 4-d parameters of `modules` are channels_last, if `layout` says so.

    At the end they are contiguous: later results then round like those from a weights file.
    """
    if layout != "channels_last":
        yield
        return
    _convert(modules, torch.channels_last)
    try:
        yield
    finally:
        _convert(modules, torch.contiguous_format)


def _convert(modules: Sequence[nn.Module], layout: torch.memory_format) -> None:
    for module in modules:
        module.to(memory_format=layout)  # type: ignore[call-overload]


@contextmanager
def compiled(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Context in which calls of `modules` go through `torch.compile`.

    Each module is compiled at its first call. If that fails, it runs eagerly, with one line in the
    log.
    """
    if not modules:
        yield
        return
    # Imported here, because dynamo takes a second to load.
    import torch._dynamo.config as config

    backend, quiet = _Inductor(), _level_of("torch._dynamo")
    with config.patch(suppress_errors=True, cache_size_limit=_GRAPHS), quiet:
        for module in modules:
            # Static shapes: which graph runs must not depend on what ran before a kill.
            module.compile(backend=backend, dynamic=False)
        try:
            yield
        finally:
            for module in modules:
                module._compiled_call_impl = None  # set by `compile`, which has no public undo
            if not backend.graphs:
                _log.warning("compile=true: torch.compile found nothing that it can compile")


class _Inductor:
    """Torch's default compiler; after its first failure, graphs run uncompiled."""

    def __init__(self) -> None:
        self.has_failed = False
        self.graphs = 0

    def __call__(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        from torch._dynamo import lookup_backend

        self.graphs += 1
        if not self.has_failed:
            try:
                function: Callable[..., Any] = lookup_backend("inductor")(graph, inputs)
                return function
            except Exception as error:  # a missing compiler, or an unknown operator
                self.has_failed = True
                _log.warning("compile=true: training goes on uncompiled (%s)", reason(error))
        return graph.forward


@contextmanager
def _level_of(name: str) -> Iterator[None]:
    """Context in which a logger, whose warnings fill pages, logs only errors."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
