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
from updp.candidates.parts.trials import FLOAT32, Precision, in_precision
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
    """Whether the narrow block, merged, equals the block with the other channels zeroed.

    This tests everything read from the block's structure: it fails if a module is also called
    elsewhere, or shared by two steps. If channels are mixed, only the shape is compared.
    """
    try:
        why = in_precision(partial(_why_not, traced, narrowing))
    except UserCodeError as error:
        why = f"a copy of it fails with all channels: {error}"
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
    block_of_copies = traced.substitute(wide.own)
    # A module that combines layers may do so in float32 whatever its weights are.
    if not _is_near(_run(traced, block_of_copies), _run(traced, traced.whole()), FLOAT32.tolerance):
        return "a layer that it combines of others is read as another one"
    narrowing.hide(wide)
    expected = _run(traced, block_of_copies)
    try:
        narrow = NarrowForm(traced, narrowing)
    except (IndexError, RuntimeError, ValueError) as error:  # it cannot be cut
        if is_out_of_memory(error):
            raise
        return str(error)
    merged = narrow.merged().replacement(traced.site, precision.dtype, like_of(block).device)
    try:
        outputs = [_run(traced, part) for part in (narrow, traced.isolate(merged))]
    except UserCodeError as error:
        counts = zip(narrowing.left, narrowing.counts, strict=True)
        some = " and ".join(f"{left} of {count}" for left, count in counts if left < count)
        return f"its forward is bound to all channels, it fails with {some}: {error}"
    if narrowing.mixed and all(y.shape == expected.shape for y in outputs):
        return ""
    if all(_is_near(y, expected, precision.tolerance) for y in outputs):
        return ""
    return "it is not the block that reads as little"


def _run(traced: TracedSite, part: nn.Module) -> Tensor:
    """Output of a part of a site for the site's example."""
    with redirect_stderr(StringIO()):  # where fx prints the code that failed
        y: Tensor = call_user_code(part, *traced.example())
    return y


def _is_near(y: Tensor, expected: Tensor, tolerance: float) -> bool:
    if y.shape != expected.shape:
        return False
    return bool((y - expected).norm() <= tolerance * expected.norm())


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
