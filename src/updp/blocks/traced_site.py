"""A site with the module and the graph that it was read from, and parts cut from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from updp.blocks.reading.site import Site
from updp.blocks.surgery import Replacement, extract, isolate, substitute


@dataclass(frozen=True)
class TracedSite:
    """A site with the module that holds it, and that module's traced graph.

    site:   the branch that may be replaced
    block:  the module at `site.block`
    graph:  its fx graph in evaluation mode, in which `site.region` lies
    """

    site: Site
    block: nn.Module
    graph: fx.Graph

    def whole(self) -> fx.GraphModule:
        """What the block computes from the site's entry to its exit: branch and skip, as it is."""
        return self.until(self.site.region.exit)

    def until(self, end: str) -> fx.GraphModule:
        """What the block computes from the site's entry to a node: a function of `example`."""
        return self.between(self.site.region.entry, end)

    def between(self, start: str, end: str) -> fx.GraphModule:
        """What the block computes from one node to another, given the site's extras, too."""
        return extract(self.block, self.graph, start, end, self.site.region.extras)

    def skip(self) -> nn.Module | None:
        """The skip as a function of the tensor at the entry; None without a residual add."""
        region = self.site.region
        if region.add is None:
            return None
        if not region.skip:
            return nn.Identity()
        return extract(self.block, self.graph, region.entry, region.skip[-1])

    def isolate(self, replacement: Replacement) -> fx.GraphModule:
        """The block's computation at the site, with a replacement in place of the branch."""
        return isolate(self.block, self.graph, replacement)

    def substitute(self, modules: Mapping[str, nn.Module]) -> fx.GraphModule:
        """The block's computation at the site, with modules in place of those at given paths."""
        return substitute(self.block, self.graph, self.site.region, modules)

    def example(self) -> tuple[Any, ...]:
        """Seeded random values for the entry and the extras, in the block's dtype."""
        return self.site.example(self.block)
