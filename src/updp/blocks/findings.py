"""Result of the block search: the sites of a model, and the unusable blocks with reasons."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import fx, nn

from updp.blocks.reading.site import Site
from updp.blocks.traced_site import TracedSite
from updp.errors import UserError


@dataclass(frozen=True)
class Unusable:
    """A block or a site that cannot be pruned, with the reason."""

    name: str  # module path or name of the site; empty for the model as a whole
    kind: str  # class name of the block
    reason: str  # the reason, in words


@dataclass(frozen=True)
class Findings:
    """Sites and unusable blocks of one model.

    graphs:       the fx graph of each block by its path, in evaluation mode
    modal:        paths of blocks whose forward differs in training mode
    keep_unused:  paths of blocks that keep all of their modules when pruned, because the rest of
        the model reads them
    keep_count:   paths of blocks whose children the rest of the model counts: new modules go inside
        one of them
    """

    sites: tuple[Site, ...]
    unusable: tuple[Unusable, ...]
    graphs: dict[str, fx.Graph]
    modal: frozenset[str] = frozenset()
    keep_unused: frozenset[str] = frozenset()
    keep_count: frozenset[str] = frozenset()

    def traced(self, site: Site, model: nn.Module) -> TracedSite:
        """One of the sites in its block of `model`."""
        return TracedSite(site, model.get_submodule(site.block), self.graphs[site.block])

    def within(self, block: str) -> Findings:
        """The findings of one block alone."""
        return replace(self, sites=tuple(site for site in self.sites if site.block == block))

    def selected(self, include: Sequence[str], exclude: Sequence[str]) -> Findings:
        """Keep the sites that match a glob in `include` (if not empty) and none in `exclude`.

        Raises:
            UserError: a glob matches no site.
        """
        names = [site.name for site in self.sites]
        for glob in (*include, *exclude):
            if not fnmatch.filter(names, glob):
                raise UserError(f"{glob!r} matches no site: `updp inspect` lists their names")

        def wanted(name: str) -> bool:
            included = not include or any(fnmatch.fnmatchcase(name, glob) for glob in include)
            return included and not any(fnmatch.fnmatchcase(name, glob) for glob in exclude)

        return replace(self, sites=tuple(site for site in self.sites if wanted(site.name)))
