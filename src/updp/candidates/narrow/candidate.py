"""`narrow`: the block keeps its operators, with fewer inner channels.

Beyond the paper: a block that merges into a large operator or not at all (a wide inverted one, say)
gains little from less depth. The fit chooses the channels, and adapts the operators that read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import fx

from updp.blocks import Site, TracedSite
from updp.blocks.modules import UserCodeError
from updp.candidates import ranks
from updp.candidates.attention.reading import read_attention
from updp.candidates.base import Candidate, Form
from updp.candidates.narrow.chain_narrowing import ChainNarrowing
from updp.candidates.narrow.form import NarrowForm, narrow_works
from updp.candidates.narrow.hidden_narrowing import HiddenNarrowing, find_hidden
from updp.candidates.narrow.narrowing import Narrowing
from updp.errors import UserError
from updp.recipe import CandidateSettings


@dataclass(frozen=True)
class Narrow(Candidate):
    """A branch with the share `width` of its inner channels."""

    kind: ClassVar[str] = "narrow"
    shallower: ClassVar[bool] = False
    width: float

    @property
    def label(self) -> str:
        """Label, such as `narrow 50%`."""
        return f"{self.kind} {100 * self.width:g}%"

    @property
    def rank(self) -> int:
        """Between candidates that merge and `drop`; higher for narrower ones."""
        return ranks.narrower(self.width)

    @classmethod
    def propose(cls, traced: TracedSite, settings: CandidateSettings) -> Iterator[Narrow]:
        """Yield the recipe's widths that reduce the channels, one for each number of channels."""
        narrowing = _narrowing(traced)
        if narrowing is None:
            return
        found: dict[tuple[int, ...], float] = {}
        for width in sorted(settings.widths, reverse=True):  # one width per number of channels left
            left = narrowing(width).left
            found[left] = _nearest(narrowing(width), found.get(left, width), width)
        found.pop(narrowing(1.0).counts, None)
        widths = list(found.values())
        # The widest is tried, because one with a single channel may work by broadcasting only.
        if not widths or not narrow_works(traced, narrowing(widths[0])):
            return
        if traced.site.branch is not None or not _has_heads(traced):
            yield from map(cls, widths)

    def fits(self, site: Site) -> bool:
        """Whether there are inner channels that would become fewer.

        For a branch that is no chain this is only known when the form is built.
        """
        if site.branch is None:
            return True
        narrowing = ChainNarrowing(site, fx.Graph(), self.width)
        return narrowing.left != narrowing.counts

    def build(self, traced: TracedSite) -> Form:
        """See `Candidate.build`; the form has narrowed copies of the block's modules.

        Raises UserError if no channels can become fewer.
        """
        narrowing = _narrowing(traced)
        narrow = None if narrowing is None else narrowing(self.width)
        if narrow is None or narrow.left == narrow.counts:
            raise UserError(f"site {traced.site.name} has no inner channels that can become fewer")
        return NarrowForm(traced, narrow)


def _narrowing(traced: TracedSite) -> Callable[[float], Narrowing] | None:
    """Factory of the narrowing at a given width; None if the block has no inner channels."""
    site = traced.site
    if site.branch is not None:
        return partial(ChainNarrowing, site, traced.graph)
    hidden = find_hidden(traced)
    return None if hidden is None else partial(HiddenNarrowing, traced, hidden)


def _nearest(narrowing: Narrowing, *widths: float) -> float:
    """The width nearest to the share of channels that are left."""
    share = sum(narrowing.left) / max(1, sum(narrowing.counts))
    return min(widths, key=lambda width: abs(width - share))


def _has_heads(traced: TracedSite) -> bool:
    """Whether `attention` can read the block; it then chooses heads by their output."""
    try:
        return read_attention(traced) is not None
    except UserCodeError:
        return False
