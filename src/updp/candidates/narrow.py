"""`narrow`: the block keeps its form, and fewer of its inner channels.

Beyond the paper: where a block merges into something large, or not at all, as wide inverted ones
do, depth alone is dear. Which channels go, and how what reads them makes up for it, `fit` says.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from updp import recipe as recipes
from updp.blocks import Chain, Site
from updp.blocks.extract import Replacement
from updp.candidates.again import Again, emit_again
from updp.candidates.base import Candidate
from updp.candidates.cutting import has_state
from updp.candidates.fitting import Fitting
from updp.candidates.inner import Inner, inner_channels, module_of, on_modules
from updp.candidates.kept import Kept, skip_of
from updp.fit import Fitted

_RANK = 50  # after what merges, before what leaves out the branch


@dataclass(frozen=True)
class Narrow(Candidate):
    """The share of the inner channels that is left, wherever the branch has some."""

    kind: ClassVar[str] = "narrow"
    shallower: ClassVar[bool] = False
    width: float

    @property
    def label(self) -> str:
        """Such as `narrow 50%`."""
        return f"{self.kind} {100 * self.width:g}%"

    @property
    def rank(self) -> int:
        """The narrower, the more is taken away."""
        return _RANK + round(_RANK * (1 - self.width)) - 1

    @classmethod
    def propose(
        cls, site: Site, block: nn.Module, graph: fx.Graph, settings: recipes.Candidates
    ) -> Iterator[Narrow]:
        """Every width of the recipe at which the block has fewer channels."""
        if site.branch is None or not _is_called(site, graph):
            return
        seen = {_widths(site, 1.0)}
        for width in sorted(settings.widths, reverse=True):
            if (left := _widths(site, width)) not in seen:
                seen.add(left)
                yield cls(width)

    def fits(self, site: Site) -> bool:
        """Whether there are inner channels, and more than are to be left."""
        return _widths(site, self.width) != _widths(site, 1.0)

    def build(self, site: Site, block: nn.Module, graph: fx.Graph) -> NarrowForm:
        """The trainable form: copies of the block's modules, narrowed."""
        return NarrowForm(site, block, graph, self)

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` makes an equal candidate."""
        return {"kind": self.kind, "width": self.width}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Narrow:
        """The inverse of `to_json`."""
        return cls(float(data["width"]))


class NarrowForm(Again):
    """The block on narrower copies of its modules, which the form owns.

    Until it is fitted it has the channels of the largest weights.
    """

    def __init__(self, site: Site, block: nn.Module, graph: fx.Graph, candidate: Narrow) -> None:
        targets = _targets(site, graph)
        copies = _copies(block, targets)
        assert site.branch is not None
        chain = on_modules(site.branch, copies)
        for inner, count in _inner(chain, candidate.width):
            inner.cut(chain, inner.largest(chain, count))
        super().__init__(site, block, graph, copies)
        self.targets, self.copies = targets, nn.ModuleList(copies.values())
        self._site, self._candidate = site, candidate
        # In a list, so that modules of the block are reached and not owned.
        self._block = [(block, graph)]

    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Its norms are the block's."""

    def fittings(self, settings: recipes.Fit, batches: int) -> list[Fitting]:
        """See `Form.fittings`: each operator that reads fewer channels, in order."""
        (block, graph), site = self._block[0], self._site
        assert site.branch is not None
        wide = _copies(block, self.targets)  # they become narrower from fit to fit
        chain = on_modules(site.branch, wide)
        skip, found = skip_of(site, block, graph), list[Fitting]()
        for inner, count in _inner(chain, self._candidate.width):
            kept = Kept(chain, inner.consumer, skip, site.post)
            both = kept.narrowing(settings, batches, count, _cutter(inner, chain))
            found += both if inner.gated else both[:1]
        last = found[-1].take

        def take(fitted: Fitted) -> None:
            last(fitted)
            for copied, own in zip(wide.values(), self.copies, strict=True):
                own.load_state_dict(copied.state_dict())

        return [*found[:-1], replace(found[-1], take=take)]

    def merged(self) -> MergedNarrow:
        """See `Form.merged`."""
        return MergedNarrow(dict(zip(self.targets, self.copies, strict=True)))


@dataclass(frozen=True)
class MergedNarrow:
    """The block's own nodes on narrower modules, by their targets."""

    modules: Mapping[str, nn.Module]

    def replacement(self, site: Site, dtype: torch.dtype, device: torch.device) -> Replacement:
        """The same calls of modules with fewer channels."""
        names = {target: f"{target.replace('.', '_')}_narrow" for target in self.modules}
        added = {
            names[target]: copy.deepcopy(module).to(device, dtype)
            for target, module in self.modules.items()
        }
        return Replacement(site.region, emit_again(site.region, names), added)


def _inner(chain: Chain, width: float) -> list[tuple[Inner, int]]:
    """The inner channels that become fewer, and how many are left."""
    found = ((inner, inner.left(chain, width)) for inner in inner_channels(chain))
    return [(inner, left) for inner, left in found if left < inner.count(chain)]


def _widths(site: Site, width: float) -> tuple[int, ...]:
    """How many of each of the branch's inner channels are left."""
    if site.branch is None:
        return ()
    return tuple(inner.left(site.branch, width) for inner in inner_channels(site.branch))


def _is_called(site: Site, graph: fx.Graph) -> bool:
    """Whether all that would be cut is in modules that the region's nodes call."""
    assert site.branch is not None
    targets = _targets(site, graph)
    cut = [
        step.name
        for inner in inner_channels(site.branch)
        for step in site.branch.steps[inner.producer : inner.consumer + 1]
        if (module := module_of(step)) is not None and has_state(module)
    ]
    return all(any(n == t or n.startswith(f"{t}.") for t in targets) for n in cut)


def _targets(site: Site, graph: fx.Graph) -> tuple[str, ...]:
    """Of the region's nodes that call a module which holds a step of the branch."""
    assert site.branch is not None
    names = [step.name for step in site.branch.steps]
    called = dict.fromkeys(
        str(n.target) for n in graph.nodes if n.op == "call_module" and n.name in site.region.branch
    )
    return tuple(t for t in called if any(n == t or n.startswith(f"{t}.") for n in names))


def _copies(block: nn.Module, targets: tuple[str, ...]) -> dict[str, nn.Module]:
    return {target: copy.deepcopy(block.get_submodule(target)) for target in targets}


def _cutter(inner: Inner, chain: Chain) -> Callable[[Tensor], None]:
    return lambda channels: inner.cut(chain, channels)
