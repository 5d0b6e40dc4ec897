"""`narrow`: the block keeps its operators, with fewer inner channels.

Beyond the paper: a block that merges into a large operator or not at all, as wide inverted ones
do, gains little from less depth. The fit chooses the channels, and adapts what reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from updp.blocks import Chain, Site
from updp.blocks.copying import copy_module
from updp.blocks.modules import UserCodeError, call_user_code, like_of
from updp.blocks.surgery import Replacement, isolate, substitute
from updp.candidates.base import Candidate, Form
from updp.candidates.narrow.channels import InnerChannels, inner_channels, names_of, on_modules
from updp.candidates.narrow.hidden_form import HiddenNarrowForm, find_hidden, propose_widths
from updp.candidates.parts.regraph import RewiredForm, emit_rewired
from updp.candidates.parts.trials import Precision, in_precision
from updp.errors import UserError, is_out_of_memory
from updp.fit import Fitted
from updp.fit.fitting import FitTask
from updp.fit.operator import OperatorFit, skip_of
from updp.recipe import CandidateSettings, FitSettings

_log = logging.getLogger(__name__)
_RANK, _LAST = 50, 100  # after what merges, before what leaves out the branch


@dataclass(frozen=True)
class Narrow(Candidate):
    """A branch with the share `width` of its inner channels."""

    kind: ClassVar[str] = "narrow"
    shallower: ClassVar[bool] = False
    width: float

    @property
    def label(self) -> str:
        """Such as `narrow 50%`."""
        return f"{self.kind} {100 * self.width:g}%"

    @property
    def rank(self) -> int:
        """After what merges and before `drop`; narrower ones later."""
        return _RANK + int((_LAST - _RANK) * (1 - self.width))

    @classmethod
    def propose(
        cls, site: Site, block: nn.Module, graph: fx.Graph, settings: CandidateSettings
    ) -> Iterator[Narrow]:
        """Yield every width of the recipe at which the block has fewer channels."""
        if site.branch is None:
            yield from map(cls, propose_widths(site, block, graph, settings.widths))
            return
        found: dict[tuple[int, ...], Narrow] = {}
        for width in sorted(settings.widths, reverse=True):
            found.setdefault(_widths(site, width), cls(width))
        found.pop(_widths(site, 1.0), None)
        # The widest is tried, for a narrow one may be left with one channel, which broadcasts.
        widest = next(iter(found.values()), None)
        if widest is not None and _works(site, block, graph, widest.width):
            yield from found.values()

    def fits(self, site: Site) -> bool:
        """Whether there are inner channels, and more than would be left.

        Those of a branch that is no chain are known where the form is built.
        """
        if site.branch is None:
            return True
        return _widths(site, self.width) != _widths(site, 1.0)

    def build(self, site: Site, block: nn.Module, graph: fx.Graph) -> Form:
        """See `Candidate.build`; the form has narrowed copies of the block's modules.

        Raises UserError: there are no channels that could become fewer.
        """
        if site.branch is None:
            hidden = find_hidden(site, block, graph)
            if hidden is None:
                raise UserError(f"site {site.name} has no inner channels that can become fewer")
            return HiddenNarrowForm(site, block, graph, hidden, self.width)
        return NarrowForm(site, block, graph, self.width)


class NarrowForm(RewiredForm):
    """The block on narrower copies of its modules, which the form owns.

    Until it is fitted it keeps the channels of the largest weights.
    """

    def __init__(self, site: Site, block: nn.Module, graph: fx.Graph, width: float) -> None:
        targets = _targets(site, graph)
        copies = _copies(block, targets)
        chain = on_modules(site.chain, copies)
        for inner, channels in _largest(chain, width):
            inner.cut(chain, channels)
        super().__init__(site, block, graph, substitute(block, graph, site.region, copies))
        self.targets, self.copies = targets, nn.ModuleList(copies.values())
        self._site, self._width = site, width
        self._block = [(block, graph)]

    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Do nothing: its norms have the block's statistics."""

    def fit_tasks(self, settings: FitSettings, batches: int) -> list[FitTask]:
        """See `Form.fit_tasks`: one or two for each operator that reads fewer channels."""
        (block, graph), site = self._block[0], self._site
        wide = _copies(block, self.targets)  # each fit cuts channels out of these
        chain, skip = on_modules(site.chain, wide), skip_of(site, block, graph)
        tasks: list[FitTask] = []
        for inner, count in _fewer(chain, self._width):
            fit = OperatorFit(chain, inner.consumer, skip, site.post)
            cut = partial(inner.cut, chain)
            tasks += fit.narrowing(
                settings, batches, count, cut, gated=inner.gated, unit=inner.unit
            )
        *others, last = tasks

        @torch.no_grad()
        def take(fitted: Fitted) -> None:
            last.take(fitted)
            for fitted_module, own in zip(wide.values(), self.copies, strict=True):
                for new, old in zip(_state(fitted_module), _state(own), strict=True):
                    old.copy_(new)

        return [*others, replace(last, take=take)]

    def merged(self) -> MergedNarrow:
        """See `Form.merged`."""
        return MergedNarrow(dict(zip(self.targets, self.copies, strict=True)))


@dataclass(frozen=True)
class MergedNarrow:
    """The block's own nodes, on narrower modules by their targets in the graph."""

    modules: Mapping[str, nn.Module]

    def replacement(self, site: Site, dtype: torch.dtype, device: torch.device) -> Replacement:
        """See `MergedForm.replacement`: the same calls, of modules with fewer channels."""
        names = {target: f"{target.replace('.', '_')}_narrow" for target in self.modules}
        added = {
            names[target]: copy_module(module).to(device, dtype)
            for target, module in self.modules.items()
        }
        return Replacement(site.region, emit_rewired(site.region, names), added)


def _fewer(chain: Chain, width: float) -> list[tuple[InnerChannels, int]]:
    """Find the inner channels that become fewer, and how many are left of each."""
    found = ((inner, inner.left(chain, width)) for inner in inner_channels(chain))
    return [(inner, left) for inner, left in found if left < inner.count(chain)]


def _widths(site: Site, width: float) -> tuple[int, ...]:
    """Return how many are left of each of the branch's inner channels."""
    if site.branch is None:
        return ()
    return tuple(inner.left(site.branch, width) for inner in inner_channels(site.branch))


def _largest(chain: Chain, width: float) -> list[tuple[InnerChannels, Tensor]]:
    """Find the inner channels that become fewer, and which are left; all before any is cut."""
    return [(inner, inner.largest(chain, count)) for inner, count in _fewer(chain, width)]


def _works(site: Site, block: nn.Module, graph: fx.Graph, width: float) -> bool:
    """Whether the narrow block, merged, equals the wide one with the other channels zeroed.

    This tries all that was read of the block's structure: it finds a module that is also called
    elsewhere, or shared by two steps. Where a gate mixes channels only the shape is compared.
    """
    try:
        why = in_precision(partial(_why_not, site, block, graph, width))
    except UserCodeError as error:
        why = str(error)
    if why:
        _log.info("%s: no narrow form: %s", site.name, why)
    return not why


@torch.no_grad()
def _why_not(
    site: Site, block: nn.Module, graph: fx.Graph, width: float, precision: Precision
) -> str:
    """Why the narrow block does not work, tried in a precision; empty if it does."""
    block = precision.copy(block)
    device = like_of(block).device
    try:
        narrow = NarrowForm(site, block, graph, width)
    except (IndexError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return str(error)
    # A buffer that is not saved would not follow the channels that a fit has chosen.
    if any(n not in narrow.state_dict() for n, _ in narrow.named_buffers()):
        return "a buffer of it would not be saved"
    part = narrow.merged().replacement(site, precision.dtype, device)
    wide = _copies(block, narrow.targets)
    chain = on_modules(site.chain, wide)
    for inner, channels in _largest(chain, width):
        inner.hide(chain, channels)
    whole = substitute(block, graph, site.region, wide)
    expected, *outputs = (
        call_user_code(function, *site.example(block))
        for function in (whole, narrow, isolate(block, graph, part))
    )
    gated = any(inner.gated for inner in inner_channels(chain))
    near = precision.tolerance * expected.norm()
    if all(y.shape == expected.shape and (gated or (y - expected).norm() <= near) for y in outputs):
        return ""
    return "it is not the block that reads as little"


def _state(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _targets(site: Site, graph: fx.Graph) -> tuple[str, ...]:
    """Find the modules called in the region that are, or hold, a step of the branch."""
    names = [name for step in site.chain.steps for name in names_of(step)]
    called = dict.fromkeys(
        str(n.target) for n in graph.nodes if n.op == "call_module" and n.name in site.region.branch
    )
    return tuple(t for t in called if any(n == t or n.startswith(f"{t}.") for n in names))


def _copies(block: nn.Module, targets: tuple[str, ...]) -> dict[str, nn.Module]:
    return {target: copy_module(block.get_submodule(target)) for target in targets}
