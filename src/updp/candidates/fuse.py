"""`fuse`: parallel paths that are linear already become one operator; nothing is lost.

Merging by reparameterisation as in RepVGG (arXiv 2101.03697, section 3.3), for any paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

from torch import Tensor, fx, nn

from updp import algebra
from updp.algebra import Operator
from updp.blocks import Site
from updp.blocks.folding import chain_operator
from updp.blocks.surgery import extract
from updp.candidates.base import Candidate, Form
from updp.candidates.parts.merged_block import MergedBlock
from updp.recipe import CandidateSettings


@dataclass(frozen=True)
class Fuse(Candidate):
    """All paths of a residual region as one operator."""

    kind: ClassVar[str] = "fuse"

    @property
    def label(self) -> str:
        """`fuse`."""
        return self.kind

    @property
    def rank(self) -> int:
        """Nothing is taken away."""
        return 0

    @classmethod
    def propose(
        cls, site: Site, block: nn.Module, graph: fx.Graph, settings: CandidateSettings
    ) -> Iterator[Fuse]:
        """One, where all paths merge exactly."""
        if cls().fits(site):
            yield cls()

    def fits(self, site: Site) -> bool:
        """Whether its paths are linear and their sum is one operator."""
        return bool(site.paths) and _operator(site) is not None

    def build(self, site: Site, block: nn.Module, graph: fx.Graph) -> FuseForm:
        """The trainable form on the given block's own modules."""
        return FuseForm(site, block, graph)

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` makes an equal candidate."""
        return {"kind": self.kind}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Fuse:
        """The inverse of `to_json`."""
        return cls()


class FuseForm(Form):
    """The block as it is."""

    def __init__(self, site: Site, block: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        region = site.region
        self.site = site
        self._keep = [extract(block, graph, region.entry, region.exit, region.extras)]

    def forward(self, x: Tensor, *extras: Any, lam: float = 1.0) -> Tensor:
        """See `Form.forward`."""
        return self._keep[0](x, *extras)

    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """There is nothing to start."""

    def merged(self) -> MergedBlock:
        """See `Form.merged`."""
        operator = _operator(self.site)
        assert operator is not None
        layout = self.site.paths[0].layout
        return MergedBlock((operator,), None, self.site.post, layout, layout, layout)


def _operator(site: Site) -> Operator | None:
    """The sum of all paths; None where padding inside them makes the border differ."""
    layout = site.paths[0].layout
    channels = site.shape_in[1 if layout == "first" else -1]
    device = next(s.weight.device for path in site.paths for s in path.linears)
    operators = [chain_operator(path, channels, device) for path in site.paths]
    if any(operator is None for operator in operators):
        return None
    try:
        return reduce(algebra.add, operators)  # type: ignore[arg-type]
    except ValueError:  # strides or sizes differ
        return None
