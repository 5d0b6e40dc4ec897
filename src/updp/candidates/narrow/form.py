"""The narrow form of a block: its own nodes, on copies of its modules that have fewer channels."""

from __future__ import annotations

import logging
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks import Site, TracedSite
from updp.blocks.modules import UserCodeError, call_user_code, like_of
from updp.blocks.surgery import Replacement
from updp.candidates.narrow.narrowing import Narrowing, NarrowModules
from updp.candidates.parts.regraph import RewiredForm
from updp.candidates.parts.trials import Precision, in_precision
from updp.errors import is_out_of_memory
from updp.fit import Fitted
from updp.fit.fit_task import FitTask
from updp.recipe import FitSettings

_log = logging.getLogger(__name__)


class NarrowForm(RewiredForm):
    """The block on narrower copies of its modules, which the form owns.

    Before the fit it keeps the channels with the largest weights.
    """

    def __init__(self, traced: TracedSite, narrowing: Narrowing) -> None:
        modules = NarrowModules.copied(traced.block, narrowing)
        narrowing.cut(modules)
        super().__init__(traced, traced.isolate(modules.replacement(traced.site)))
        self.copies = nn.ModuleList(modules.all)
        self._narrow, self._narrowing, self._traced = modules, narrowing, traced

    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Do nothing: its norms have the block's statistics."""

    def fit_tasks(self, settings: FitSettings, batches: int) -> list[FitTask]:
        """See `Form.fit_tasks`: one or two for each operator that reads fewer channels."""
        wide = NarrowModules.copied(self._traced.block, self._narrowing)
        skip = self._traced.skip()
        *others, last = self._narrowing.fit_tasks(wide, skip, settings, batches)

        def install(fitted: Fitted) -> None:
            last.install(fitted)
            self._narrow.copy_from(wide)

        return [*others, replace(last, install=install)]

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


def narrow_works(traced: TracedSite, narrowing: Narrowing) -> bool:
    """Whether the narrow block, merged, equals the wide one with the other channels zeroed.

    This tests everything read from the block's structure: it fails if a module is also called
    elsewhere, or shared by two steps. If channels are mixed, only the shape is compared.
    """
    try:
        why = in_precision(partial(_why_not, traced, narrowing))
    except UserCodeError as error:
        counts = zip(narrowing.left, narrowing.counts, strict=True)
        some = " and ".join(f"{left} of {count}" for left, count in counts if left < count)
        why = f"its forward is bound to all channels, it fails with {some}: {error}"
    if why:
        _log.info("%s: no narrow form: %s", traced.site.name, why)
    return not why


@torch.no_grad()
def _why_not(traced: TracedSite, narrowing: Narrowing, precision: Precision) -> str:
    """Reason why the narrow block does not work in a precision; empty if it does."""
    block = _with_all_weights(precision.copy(traced.block))
    traced = replace(traced, block=block)
    wide = NarrowModules.copied(block, narrowing)
    # A buffer outside the state dict would not follow the channels that a fit has chosen.
    if any(_has_unsaved_buffer(module) for module in narrowing.losing(wide)):
        return "a buffer of it would not be saved"
    narrowing.hide(wide)
    try:
        narrow = NarrowForm(traced, narrowing)
    except (IndexError, RuntimeError, ValueError) as error:  # it cannot be cut
        if is_out_of_memory(error):
            raise
        return str(error)
    merged = narrow.merged().replacement(traced.site, precision.dtype, like_of(block).device)
    parts = (traced.substitute(wide.own), narrow, traced.isolate(merged))
    with redirect_stderr(StringIO()):  # where fx prints the code that failed
        expected, *outputs = (call_user_code(part, *traced.example()) for part in parts)
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
