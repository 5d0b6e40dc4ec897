"""Narrowing of a branch that is no chain, by hidden channels or by heads of attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from updp.blocks import ScaleStep, TracedSite
from updp.blocks.modules import UserCodeError
from updp.candidates.narrow.channels import on_modules
from updp.candidates.narrow.heads import head_channels
from updp.candidates.narrow.hidden import HiddenChannels, hidden_channels
from updp.candidates.narrow.narrowing import NarrowModules
from updp.candidates.parts.widths import share_of
from updp.fit.fit_task import FitTask
from updp.fit.operator import FittableOperator, Function
from updp.recipe import FitSettings


def find_hidden(traced: TracedSite) -> HiddenChannels | None:
    """Find the channels that can become fewer: hidden channels, else the heads of an attention."""
    found = hidden_channels(traced)
    try:
        return head_channels(traced) if found is None else found
    except UserCodeError:
        return None


class HiddenNarrowing:
    """Hidden channels of a site's branch at a share `width`; see `Narrowing`."""

    mixed = False

    def __init__(self, traced: TracedSite, hidden: HiddenChannels, width: float) -> None:
        self._traced, self._hidden = traced, hidden
        self.targets: tuple[str, ...] = hidden.targets
        self.extras: Mapping[str, int] = hidden.extras
        self.composed: Mapping[str, fx.Graph] = hidden.composed
        self.counts = (hidden.count,)
        self.left = (share_of(hidden.count, width, hidden.unit),)

    def losing(self, modules: NarrowModules) -> list[nn.Module]:
        """See `Narrowing`."""
        hidden = self._hidden
        return [hidden.module(modules.own, name) for name in hidden.cut_modules]

    def cut(self, modules: NarrowModules) -> None:
        """See `Narrowing`."""
        self._cut(modules, self._largest(modules))

    @torch.no_grad()
    def hide(self, modules: NarrowModules) -> None:
        """See `Narrowing`."""
        self._hidden.hide(modules.own, self._largest(modules))

    def fit_tasks(
        self,
        modules: NarrowModules,
        skip: Function | None,
        settings: FitSettings,
        batches: int,
    ) -> list[FitTask]:
        """See `Narrowing`: one task, for the operator that reads the channels; two if it reads
        factors that are made of them, too.
        """
        hidden, post = self._hidden, self._traced.site.post
        chain = hidden.chain
        if hidden.factor is not None:  # computed anew, because training may have changed it
            if (factor := hidden.factor()) is None:
                skip = post = None  # the operator is fitted to its own output
            else:
                chain = replace(chain, steps=(*chain.steps, ScaleStep("", factor)))
        gated = bool(hidden.readers)
        enter = self._entered(modules) if gated else hidden.enter
        fit = FittableOperator(on_modules(chain, modules.own), 0, skip, post, enter)

        def cut(channels: Tensor) -> None:
            self._cut(modules, channels)

        return fit.narrowing_tasks(
            settings, batches, *self.left, cut, gated=gated, unit=hidden.unit
        )

    def _entered(self, modules: NarrowModules) -> Function:
        """The function from the site's entry and extras to what the consumer among `modules` reads.

        It changes as they are cut.
        """
        run = self._traced.substitute(modules.own)
        consumer = self._hidden.module(modules.own, self._hidden.consumer)

        def enter(*inputs: Tensor) -> Tensor:
            read: list[Tensor] = []
            with consumer.register_forward_pre_hook(lambda module, given: read.append(given[0])):
                run(*inputs)
            return read[0]

        return enter

    def _largest(self, modules: NarrowModules) -> Tensor:
        return self._hidden.largest(modules.own, *self.left)

    def _cut(self, modules: NarrowModules, channels: Tensor) -> None:
        self._hidden.cut(modules.own, channels)
        for select in modules.selects.values():
            select.channels.copy_(channels)
