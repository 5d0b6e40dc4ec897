"""The narrow form of a block: its own nodes, on copies of its modules that have fewer channels."""

from __future__ import annotations

import logging
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn

from updp.blocks import Site
from updp.blocks.modules import UserCodeError, call_user_code, like_of
from updp.blocks.surgery import Replacement, isolate, substitute
from updp.candidates.narrow.narrowing import Narrowing, NarrowModules
from updp.candidates.parts.regraph import RewiredForm
from updp.candidates.parts.trials import Precision, in_precision
from updp.errors import is_out_of_memory
from updp.fit import Fitted
from updp.fit.fitting import FitTask
from updp.fit.operator import skip_of
from updp.recipe import FitSettings

_log = logging.getLogger(__name__)


class NarrowForm(RewiredForm):
    """The block on narrower copies of its modules, which the form owns.

    Before the fit it keeps the channels with the largest weights.
    """

    def __init__(self, site: Site, block: nn.Module, graph: fx.Graph, narrowing: Narrowing) -> None:
        modules = NarrowModules.copied(block, narrowing)
        narrowing.cut(modules)
        super().__init__(site, block, graph, isolate(block, graph, modules.replacement(site)))
        self.copies = nn.ModuleList(modules.all)
        self._narrow, self._narrowing, self._site = modules, narrowing, site
        self._block = [(block, graph)]

    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Do nothing: its norms have the block's statistics."""

    def fit_tasks(self, settings: FitSettings, batches: int) -> list[FitTask]:
        """See `Form.fit_tasks`: one or two for each operator that reads fewer channels."""
        (block, graph), narrowing = self._block[0], self._narrowing
        wide = NarrowModules.copied(block, narrowing)
        skip = skip_of(self._site, block, graph)
        *others, last = narrowing.fit_tasks(wide, skip, settings, batches)

        def take(fitted: Fitted) -> None:
            last.take(fitted)
            self._narrow.take(wide)

        return [*others, replace(last, take=take)]

    def merged(self) -> MergedNarrow:
        """See `Form.merged`."""
        return MergedNarrow(self._narrow)


@dataclass(frozen=True)
class MergedNarrow:
    """The block's own nodes, on narrower modules."""

    modules: NarrowModules

    def replacement(self, site: Site, dtype: torch.dtype, device: torch.device) -> Replacement:
        """See `MergedForm.replacement`: the same calls, of modules with fewer channels."""
        return self.modules.to(dtype, device).replacement(site)


def narrow_works(site: Site, block: nn.Module, graph: fx.Graph, narrowing: Narrowing) -> bool:
    """Whether the narrow block, merged, equals the wide one with the other channels zeroed.

    This tests everything read from the block's structure: it fails if a module is also called
    elsewhere, or shared by two steps. If channels are mixed, only the shape is compared.
    """
    try:
        why = in_precision(partial(_why_not, site, block, graph, narrowing))
    except UserCodeError as error:
        counts = zip(narrowing.left, narrowing.counts, strict=True)
        some = " and ".join(f"{left} of {count}" for left, count in counts if left < count)
        why = f"its forward is bound to all channels, it fails with {some}: {error}"
    if why:
        _log.info("%s: no narrow form: %s", site.name, why)
    return not why


@torch.no_grad()
def _why_not(
    site: Site, block: nn.Module, graph: fx.Graph, narrowing: Narrowing, precision: Precision
) -> str:
    """Reason why the narrow block does not work in a precision; empty if it does."""
    block = _with_all_weights(precision.copy(block))
    wide = NarrowModules.copied(block, narrowing)
    # A buffer outside the state dict would not follow the channels that a fit has chosen.
    if any(_has_unsaved_buffer(module) for module in narrowing.losing(wide)):
        return "a buffer of it would not be saved"
    narrowing.hide(wide)
    try:
        narrow = NarrowForm(site, block, graph, narrowing)
    except (IndexError, RuntimeError, ValueError) as error:  # it cannot be cut
        if is_out_of_memory(error):
            raise
        return str(error)
    merged = narrow.merged().replacement(site, precision.dtype, like_of(block).device)
    parts = (
        substitute(block, graph, site.region, wide.own),
        narrow,
        isolate(block, graph, merged),
    )
    with redirect_stderr(StringIO()):  # where fx prints the code that failed
        expected, *outputs = (call_user_code(part, *site.example(block)) for part in parts)
    near = precision.tolerance * expected.norm()
    if all(
        y.shape == expected.shape and (narrowing.mixed or (y - expected).norm() <= near)
        for y in outputs
    ):
        return ""
    return "it is not the block that reads as little"


def _has_unsaved_buffer(module: nn.Module) -> bool:
    saved = module.state_dict()
    return any(buffer.ndim and name not in saved for name, buffer in module.named_buffers())


def _with_all_weights(block: nn.Module) -> nn.Module:
    """Replace parameters with all values equal, such as zeros, by seeded random numbers.

    Otherwise the trial would not test what comes behind such weights.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            values = 0.5 + torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(values)
    return block
