"""Narrowing of a chain: all its inner channels that become fewer at a width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from torch import Tensor, fx, nn

from updp.blocks import Chain, Site
from updp.blocks.reading.composed import ComposedStep
from updp.candidates.narrow.channels import (
    InnerChannels,
    inner_channels,
    modules_of,
    names_of,
    on_modules,
)
from updp.candidates.narrow.hidden import called_modules
from updp.candidates.narrow.narrowing import NarrowModules
from updp.fit.fit_task import FitTask
from updp.fit.operator import FittableOperator, Function
from updp.recipe import FitSettings


class ChainNarrowing:
    """The inner channels of a site's chain at a share `width`; see `Narrowing`."""

    extras: Mapping[str, int] = {}

    def __init__(self, site: Site, graph: fx.Graph, width: float) -> None:
        self._site, self._graph, self._width = site, graph, width
        inner = list(inner_channels(site.chain))
        self.counts = tuple(channels.count(site.chain) for channels in inner)
        self.left = tuple(channels.left(site.chain, width) for channels in inner)
        self.mixed = any(channels.gated for channels in inner)
        composed = (step for step in site.chain.steps if isinstance(step, ComposedStep))
        self.composed: Mapping[str, fx.Graph] = {step.name: step.graph for step in composed}

    @property
    def targets(self) -> tuple[str, ...]:
        """See `Narrowing`: modules that are, or contain, a step of the chain."""
        region, steps = self._site.region, self._site.chain.steps
        names = [name for step in steps for name in names_of(step)]
        return called_modules(self._graph, names, region.branch)

    def losing(self, modules: NarrowModules) -> list[nn.Module]:
        """See `Narrowing`: all modules of the chain's steps."""
        return list(modules_of(self._chain(modules)))

    def cut(self, modules: NarrowModules) -> None:
        """See `Narrowing`."""
        chain = self._chain(modules)
        for inner, channels in self._largest(chain):
            inner.cut(chain, channels)

    def hide(self, modules: NarrowModules) -> None:
        """See `Narrowing`."""
        chain = self._chain(modules)
        for inner, channels in self._largest(chain):
            inner.hide(chain, channels)

    def fit_tasks(
        self,
        modules: NarrowModules,
        skip: Function | None,
        settings: FitSettings,
        batches: int,
    ) -> list[FitTask]:
        """See `Narrowing`: for each operator one task, or two if the channels are mixed."""
        chain, tasks = self._chain(modules), []
        for inner, count in self._fewer(chain):
            fit = FittableOperator(chain, inner.consumer, skip, self._site.post)
            cut = partial(inner.cut, chain)
            tasks += fit.narrowing_tasks(
                settings, batches, count, cut, gated=inner.gated, unit=inner.unit
            )
        return tasks

    def _chain(self, modules: NarrowModules) -> Chain:
        return on_modules(self._site.chain, modules.own)

    def _fewer(self, chain: Chain) -> Iterator[tuple[InnerChannels, int]]:
        """Yield the inner channels that become fewer, with the number left of each."""
        for inner in inner_channels(chain):
            if (left := inner.left(chain, self._width)) < inner.count(chain):
                yield inner, left

    def _largest(self, chain: Chain) -> list[tuple[InnerChannels, Tensor]]:
        """Find the inner channels that become fewer, and which stay, before any are cut."""
        return [(inner, inner.largest(chain, left)) for inner, left in self._fewer(chain)]
