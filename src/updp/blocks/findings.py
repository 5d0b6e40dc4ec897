"""What was found in a model: its sites, and each block that cannot be one with its reason."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import fx

from updp.blocks.reading.site import Site
from updp.errors import UserError


@dataclass(frozen=True)
class Unusable:
    """A block that cannot be pruned, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Findings:
    """What was found in one model; `graphs` holds each block's own traced graph."""

    sites: tuple[Site, ...]
    unusable: tuple[Unusable, ...]
    graphs: dict[str, fx.Graph]

    def selected(self, include: Sequence[str], exclude: Sequence[str]) -> Findings:
        """Only the sites that a glob of `include` (all, when empty) and none of `exclude` matches.

        Raises UserError for a glob that matches no site.
        """
        names = [site.name for site in self.sites]
        for glob in (*include, *exclude):
            if not fnmatch.filter(names, glob):
                raise UserError(f"{glob!r} matches no site: `updp inspect` lists their names")

        def wanted(name: str) -> bool:
            included = not include or any(fnmatch.fnmatchcase(name, glob) for glob in include)
            return included and not any(fnmatch.fnmatchcase(name, glob) for glob in exclude)

        return replace(self, sites=tuple(site for site in self.sites if wanted(site.name)))
