"""`attention`: self-attention with fewer heads, or with smaller ones.

Beyond the paper, which keeps attention whole. The heads and channels to keep are chosen in closed
form on the calibration images, and the output layer is fitted to compensate for the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from updp.blocks import Site, TracedSite
from updp.blocks.modules import UserCodeError
from updp.candidates import ranks
from updp.candidates.attention.form import NarrowAttentionForm
from updp.candidates.attention.heads import Heads, attend
from updp.candidates.attention.reading import HeadLayout, may_attend, read_attention, read_heads
from updp.candidates.attention.reduce import reduced
from updp.candidates.base import Candidate
from updp.candidates.parts.widths import share_of
from updp.errors import UserError, is_out_of_memory
from updp.recipe import CandidateSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NarrowAttention(Candidate):
    """Self-attention with `heads` heads, each of `keys` channels for logits and `values` to sum up.

    `of` has the block's own numbers: heads, keys, values. `layout` says how the block holds them.
    """

    kind: ClassVar[str] = "attention"
    shallower: ClassVar[bool] = False
    heads: int
    keys: int
    values: int
    of: tuple[int, int, int]
    layout: HeadLayout

    @property
    def label(self) -> str:
        """Label such as `attention 2/3 heads`, `attention q,k 32/64` or `attention q,k,v 32/64`."""
        heads, keys, values = self.of
        parts = [] if self.heads == heads else [f"{self.heads}/{heads} heads"]
        if self.values < values:
            parts.append(f"q,k,v {self.values}/{values}")
        elif self.keys < keys:
            parts.append(f"q,k {self.keys}/{keys}")
        return " ".join([self.kind, *parts])

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of heads, channels of their keys, channels of their values."""
        return self.heads, self.keys, self.values

    @property
    def rank(self) -> int:
        """Higher, the smaller the share of the heads' channels that is left."""
        heads, keys, values = self.of
        share = self.heads * (self.keys + self.values) / (heads * (keys + values))
        return ranks.narrower(share)

    @classmethod
    def propose(cls, traced: TracedSite, settings: CandidateSettings) -> Iterator[NarrowAttention]:
        """Yield fewer heads, smaller keys, and smaller keys and values, for the recipe's widths."""
        if not settings.widths:
            return
        try:
            layout = read_attention(traced)
        except UserCodeError as error:
            _log.info("%s: no smaller attention: %s", traced.site.name, error)
            return
        if layout is None:
            return
        found: dict[str, NarrowAttention] = {}
        count, size = layout.heads, layout.read(traced.block).sizes[0]
        for width in sorted(settings.widths)[::2][::-1]:  # every second: each makes three
            fewer, less = max(1, round(count * width)), share_of(size, width)
            for sizes in ((fewer, size, size), (count, less, size), (count, less, less)):
                if sizes != (count, size, size):
                    candidate = cls(*sizes, (count, size, size), layout)
                    found.setdefault(candidate.label, candidate)
        yield from found.values()

    def fits(self, site: Site) -> bool:
        """Whether the site may be attention on tokens and contains the nodes of this layout."""
        ends = {self.layout.start, self.layout.end}
        return may_attend(site) and ends <= {site.region.entry, *site.region.branch}

    def build(self, traced: TracedSite) -> NarrowAttentionForm:
        """See `Candidate.build`. Raises UserError if the block does not have the plan's layout."""
        wrong = UserError(
            f"the plan's candidate {self.label!r} does not fit the site {traced.site.name!r}"
        )
        try:
            heads = read_heads(self.layout, traced)
        except (AttributeError, IndexError, RuntimeError, UserCodeError) as error:
            if is_out_of_memory(error):
                raise
            raise wrong from error
        if (heads.count, *heads.sizes) != self.of or not all(map(_is_some, self.sizes, self.of)):
            raise wrong
        return NarrowAttentionForm(traced, self, heads)

    def cut(self, heads: Heads, tokens: Tensor) -> Heads:
        """The heads reduced to this candidate's sizes, chosen on tokens (N, T, C)."""
        return reduced(heads, tokens, self.heads, self.keys, self.values)

    def attend(self, heads: Mapping[str, Any], tokens: Tensor, images: int) -> Tensor:
        """Outputs of `heads`, given as modules, for the tokens (N, T, C) of `images` images."""
        y, offsets = heads["qkv"](tokens), heads["offsets"]() if "offsets" in heads else None
        several = self.layout.windows > 1
        return attend(y, self.sizes, images if several else None, offsets, self.layout.causal)


def _is_some(left: int, of: int) -> bool:
    return 0 < left <= of
