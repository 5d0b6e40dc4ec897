"""The narrow form of a branch that is no chain, by its hidden channels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn

from updp.blocks import ScaleStep, Site
from updp.blocks.copying import copy_module
from updp.blocks.modules import UserCodeError, call_user_code, like_of
from updp.blocks.surgery import Replacement, isolate, substitute
from updp.candidates.attention.reading import read_attention
from updp.candidates.narrow.channels import on_modules
from updp.candidates.narrow.heads import head_channels
from updp.candidates.narrow.hidden import HiddenChannels, hidden_channels
from updp.candidates.parts.regraph import RewiredForm, emit_rewired
from updp.candidates.parts.trials import Precision, in_precision
from updp.candidates.parts.widths import share_of
from updp.errors import is_out_of_memory
from updp.fit import Fitted
from updp.fit.fitting import FitTask
from updp.fit.operator import OperatorFit, skip_of
from updp.recipe import FitSettings

_log = logging.getLogger(__name__)


class Select(nn.Module):
    """Some channels of a value that comes from outside of the branch."""

    channels: Tensor

    def __init__(self, count: int, axis: int, device: torch.device) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("channels", torch.arange(count, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the channels' part of `x`."""
        return x.index_select(self.axis, self.channels)


def find_hidden(site: Site, block: nn.Module, graph: fx.Graph) -> HiddenChannels | None:
    """Find what may become fewer: hidden channels, else the heads of an attention.

    It depends on the structure alone: a form is built again where weights are yet to be loaded.
    """
    found = hidden_channels(site, block, graph)
    try:
        return head_channels(site, block, graph) if found is None else found
    except UserCodeError:
        return None


def narrow_width(hidden: HiddenChannels, width: float) -> int:
    """Return how many hidden channels a share is."""
    return share_of(hidden.count, width, hidden.unit)


class HiddenNarrowForm(RewiredForm):
    """The block on narrower copies of the operators round its hidden channels.

    Until it is fitted it keeps the channels of the largest weights.
    """

    def __init__(
        self, site: Site, block: nn.Module, graph: fx.Graph, hidden: HiddenChannels, width: float
    ) -> None:
        left = narrow_width(hidden, width)
        copies, selects = _copies(block, hidden), _selects(block, hidden, left)
        _cut(hidden, copies, selects, hidden.largest(copies, left))
        part = isolate(block, graph, _replacement(site, hidden, copies, selects))
        super().__init__(site, block, graph, part)
        self._hidden, self._site, self._left = hidden, site, left
        self.copies = nn.ModuleList([*copies.values(), *selects.values()])
        self._block = [(block, graph)]

    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Do nothing: its norms have the block's statistics."""

    def fit_tasks(self, settings: FitSettings, batches: int) -> list[FitTask]:
        """See `Form.fit_tasks`: one, of the operator that reads the channels."""
        (block, graph), site, hidden = self._block[0], self._site, self._hidden
        wide = _copies(block, hidden)  # the fit cuts channels out of these
        selects = _selects(block, hidden, self._left)
        chain, skip, post = hidden.chain, skip_of(site, block, graph), site.post
        if hidden.factor is not None:  # computed anew, as it may have been trained
            if (factor := hidden.factor()) is None:
                skip = post = None  # the operator is fitted to its own output
            else:
                chain = replace(chain, steps=(*chain.steps, ScaleStep("", factor)))
        fit = OperatorFit(on_modules(chain, wide), 0, skip, post, hidden.enter)

        def cut(channels: Tensor) -> None:
            _cut(hidden, wide, selects, channels)

        (task,) = fit.narrowing(settings, batches, self._left, cut, gated=False, unit=hidden.unit)

        @torch.no_grad()
        def take(fitted: Fitted) -> None:
            task.take(fitted)
            for new, own in zip((*wide.values(), *selects.values()), self.copies, strict=True):
                own.load_state_dict(new.state_dict())

        return [replace(task, take=take)]

    def merged(self) -> MergedHiddenNarrow:
        """See `Form.merged`."""
        targets, hidden = self._hidden.targets, self._hidden
        modules = dict(zip((*targets, *hidden.extras), self.copies, strict=True))
        return MergedHiddenNarrow(
            hidden,
            {name: modules[name] for name in targets},
            {name: modules[name] for name in hidden.extras},
        )


class MergedHiddenNarrow:
    """The block's own nodes, on narrower modules; see `MergedForm`."""

    def __init__(
        self,
        hidden: HiddenChannels,
        modules: Mapping[str, nn.Module],
        selects: Mapping[str, nn.Module],
    ) -> None:
        self.hidden, self.modules, self.selects = hidden, modules, selects

    def replacement(self, site: Site, dtype: torch.dtype, device: torch.device) -> Replacement:
        """See `MergedForm.replacement`: the same calls, of modules with fewer channels."""

        def copied(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
            return {name: copy_module(m).to(device, dtype) for name, m in modules.items()}

        return _replacement(site, self.hidden, copied(self.modules), copied(self.selects))


def works(
    site: Site, block: nn.Module, graph: fx.Graph, hidden: HiddenChannels, width: float
) -> bool:
    """Whether the narrow block equals the wide one with the other channels' weights at zero."""
    try:
        why = in_precision(partial(_why_not, site, block, graph, hidden, width))
    except (UserCodeError, IndexError, RuntimeError, ValueError) as error:  # it cannot be cut
        if is_out_of_memory(error):
            raise
        why = str(error)
    if why:
        _log.info("%s: no narrow form: %s", site.name, why)
    return not why


@torch.no_grad()
def _why_not(
    site: Site,
    block: nn.Module,
    graph: fx.Graph,
    hidden: HiddenChannels,
    width: float,
    precision: Precision,
) -> str:
    """Why the narrow block does not work, tried in a precision; empty if it does."""
    block = _with_all_weights(precision.copy(block))
    wide = _copies(block, hidden)
    own = [hidden.module(wide, name) for name in hidden.cut_modules]
    if any(
        b.ndim and n not in module.state_dict() for module in own for n, b in module.named_buffers()
    ):
        return "a buffer of it would not be saved"
    left = narrow_width(hidden, width)
    off = torch.ones(hidden.count, dtype=torch.bool, device=like_of(block).device)
    off[hidden.largest(wide, left)] = False
    hidden.module(wide, hidden.consumer).get_parameter("weight")[:, off] = 0
    narrow = HiddenNarrowForm(site, block, graph, hidden, width)
    merged = narrow.merged().replacement(site, precision.dtype, off.device)
    whole = substitute(block, graph, site.region, wide)
    parts: list[Callable[..., Tensor]] = [whole, narrow, isolate(block, graph, merged)]
    with redirect_stderr(StringIO()):  # where fx prints the code that failed
        expected, *outputs = (call_user_code(part, *site.example(block)) for part in parts)
    near = precision.tolerance * expected.norm()
    if all(y.shape == expected.shape and (y - expected).norm() <= near for y in outputs):
        return ""
    return "it is not the block that reads as little"


def _with_all_weights(block: nn.Module) -> nn.Module:
    """The block, with seeded numbers in place of parameters that are all alike, such as zeros.

    What stands behind such weights would not be tried.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            values = 0.5 + torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(values)
    return block


def _copies(block: nn.Module, hidden: HiddenChannels) -> dict[str, nn.Module]:
    return {target: copy_module(block.get_submodule(target)) for target in hidden.targets}


def _selects(block: nn.Module, hidden: HiddenChannels, count: int) -> dict[str, Select]:
    device = like_of(block).device
    return {name: Select(count, axis, device) for name, axis in hidden.extras.items()}


def _cut(
    hidden: HiddenChannels,
    modules: Mapping[str, nn.Module],
    selects: Mapping[str, Select],
    channels: Tensor,
) -> None:
    hidden.cut(modules, channels)
    for select in selects.values():
        select.channels.copy_(channels)


def _replacement(
    site: Site,
    hidden: HiddenChannels,
    modules: Mapping[str, nn.Module],
    selects: Mapping[str, nn.Module],
) -> Replacement:
    """The region's nodes again, on other modules, with a selection of each value from outside."""
    region = site.region
    names = {target: f"{target.replace('.', '_')}_narrow" for target in hidden.targets}
    chosen = {name: f"{name}_narrow" for name in hidden.extras}
    if len({*names.values(), *chosen.values()}) < len(names) + len(chosen):
        names = {target: f"narrow_{number}" for number, target in enumerate(names)}
        chosen = {name: f"chosen_{number}" for number, name in enumerate(chosen)}

    added = {names[target]: modules[target] for target in hidden.targets}
    emit = emit_rewired(region, names, chosen=chosen)
    return Replacement(region, emit, added | {chosen[name]: selects[name] for name in chosen})


def propose_widths(
    site: Site, block: nn.Module, graph: fx.Graph, widths: Sequence[float]
) -> list[float]:
    """List the widths, the largest first, that leave different and fewer channels."""
    hidden = find_hidden(site, block, graph)
    if hidden is None:
        return []
    found: dict[int, float] = {}
    for width in sorted(widths, reverse=True):  # of those that leave as many, the nearest
        left = narrow_width(hidden, width)
        best = found.get(left, width)
        found[left] = min(best, width, key=lambda w: abs(w - left / hidden.count))
    found.pop(hidden.count, None)
    # The widest is tried, for a narrow one may be left with one channel, which broadcasts.
    if not found or not works(site, block, graph, hidden, next(iter(found.values()))):
        return []
    try:  # attention that is understood has heads chosen by what they do
        return [] if read_attention(site, block, graph) is not None else list(found.values())
    except UserCodeError:
        return list(found.values())
