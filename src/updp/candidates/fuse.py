"""`fuse`: merge parallel paths that are linear already into one operator; nothing is lost.

Merging by reparameterisation as in RepVGG (arXiv 2101.03697, section 3.3), for any paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

from torch import Tensor

from updp import algebra
from updp.algebra import Operator
from updp.blocks import Site, TracedSite
from updp.blocks.folding import chain_operator
from updp.candidates import ranks
from updp.candidates.base import Candidate, Form
from updp.candidates.parts.merged_block import MergedBlock
from updp.recipe import CandidateSettings


@dataclass(frozen=True)
class Fuse(Candidate):
    """All paths of a residual region as one operator."""

    kind: ClassVar[str] = "fuse"

    @property
    def rank(self) -> int:
        """Lowest of all: nothing is removed."""
        return ranks.NOTHING

    @classmethod
    def propose(cls, traced: TracedSite, settings: CandidateSettings) -> Iterator[Fuse]:
        """Yield one, if all paths merge exactly."""
        if cls().fits(traced.site):
            yield cls()

    def fits(self, site: Site) -> bool:
        """Whether the paths are linear and their sum is one operator."""
        return bool(site.paths) and _sum_of_paths(site) is not None

    def build(self, traced: TracedSite) -> FuseForm:
        """See `Candidate.build`."""
        return FuseForm(traced)


class FuseForm(Form):
    """The block unchanged: it is linear already and merges without training."""

    def __init__(self, traced: TracedSite) -> None:
        super().__init__()
        self.site = traced.site
        self._keep: list[Callable[..., Tensor]] = [traced.whole()]

    def forward(self, x: Tensor, *extras: Any, lam: float = 1.0) -> Tensor:
        """See `Form.forward`."""
        return self._keep[0](x, *extras)

    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Do nothing: the form has no BatchNorm of its own."""

    def merged(self) -> MergedBlock:
        """See `Form.merged`."""
        operator = _sum_of_paths(self.site)
        assert operator is not None
        layout = self.site.paths[0].layout
        return MergedBlock((operator,), None, self.site.post, layout, layout, layout)


def _sum_of_paths(site: Site) -> Operator | None:
    """Add all paths; None where padding inside them makes the border differ."""
    layout = site.paths[0].layout
    channels = site.shape_in[1 if layout == "first" else -1]
    device = next(s.weight.device for path in site.paths for s in path.linears)
    operators: list[Operator] = []
    for path in site.paths:
        if (operator := chain_operator(path, channels, device)) is None:
            return None
        operators.append(operator)
    try:
        return reduce(algebra.add, operators)
    except ValueError:  # strides or sizes differ
        return None
