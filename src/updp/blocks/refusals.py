"""What of a model cannot be pruned, and why."""

import logging
from collections.abc import Mapping

from updp.blocks.claims import Claims
from updp.blocks.findings import Unusable
from updp.blocks.modules import count_operators
from updp.blocks.paths import nested, under
from updp.blocks.traced_model import TracedModel
from updp.blocks.tracing.real_values import NEVER
from updp.blocks.tracing.region import Region, joins_maps

_log = logging.getLogger(__name__)


class Refusals:
    """Blocks and branches that cannot be sites beside those in `claims`.

    found:     the refused ones, in the order in which they were refused
    lost:      residual adds that end no region: block, region and reason
    repeated:  branches of modules that run several times: region and reason, by block and name
    """

    def __init__(self, traced: TracedModel, claims: Claims) -> None:
        self._traced, self._claims = traced, claims
        self.found: list[Unusable] = []
        self.lost: list[tuple[str, Region, str]] = []
        self.repeated: dict[tuple[str, str], tuple[Region, str]] = {}

    def add(self, name: str, path: str, reason: str) -> None:
        """Refuse a branch, or a block, of the module at `path` for a reason."""
        kind = type(self._traced.model.get_submodule(path)).__name__
        self.found.append(Unusable(name, kind, reason))
        _log.info("%s cannot be pruned: %s", name or "the model", reason)

    def forget(self, name: str) -> None:
        """Take back what was refused by this name: a site has it now."""
        self.found = [u for u in self.found if u.name != name]

    def list_all(self, residual: Mapping[str, object], around: Mapping[str, list[Region]]) -> None:
        """List all that is no site, once all sites are taken.

        `residual` has the modules with residual branches, and `around` the branches of modules
        around those.
        """
        self._list_repeated()
        self._list_lost()
        self._list_untraceable(residual)
        self._list_around(around)
        # If sites hold the parts of a module that is never called, those parts are called.
        never = [u for u in self.found if u.reason == NEVER and self._claims.meet(u.name)]
        self.found = [u for u in self.found if u not in never]

    def _list_repeated(self) -> None:
        """List the branches of modules that run several times, once for all of their runs."""
        for (path, name), (region, reason) in self.repeated.items():
            self.add(
                name, path, self._claims.holds_site(self._traced.called(path, region)) or reason
            )

    def _list_lost(self) -> None:
        """List residual adds that end no region, if no site uses a module of their branch."""
        known = [u.name.partition(":")[0] for u in self.found]
        for path, region, why in self.lost:
            nodes = {n.name: n for n in self._traced.graphs[path].nodes}
            paths = [p for n in region.branch for p in self._traced.paths(path, nodes[n])[1:]]
            if any(nested(path, other) for other in known) or self._claims.meet(*paths):
                continue
            if not joins_maps(region, self._traced.values(path)):
                continue
            if sum(count_operators(self._traced.model.get_submodule(inner)) for inner in paths):
                self.add(self._traced.name_of(path, region, 2), path, why)

    def _list_around(self, around: Mapping[str, list[Region]]) -> None:
        """List residual branches that cannot be sites because modules they call contain sites."""
        known = {*(s.name for s in self._claims.sites), *(u.name for u in self.found)}
        for path, regions in around.items():
            for region in regions:
                name = self._traced.name_of(path, region, len(regions) + 1)
                calls = self._traced.called(path, region)
                held = self._claims.holds_site(calls)
                if held and name not in known and joins_maps(region, self._traced.values(path)):
                    self.add(name, path, held)

    def _list_untraceable(self, residual: Mapping[str, object]) -> None:
        """List the outermost untraceable modules that are apart from everything found."""
        refused = [u.name for u in self.found if not self._is_inside_untraceable(u.name)]
        known = [*residual, *(s.block for s in self._claims.sites), *refused]
        for path, reason in self._traced.untraceable.items():  # parents first
            apart = not any(nested(path, other) for other in known)
            if path and apart and count_operators(self._traced.modules[path]) > 1:
                known.append(path)
                self.add(path, path, f"it cannot be traced: {reason}")
        if "" in self._traced.untraceable and not (known and residual):
            self.add("", "", f"it cannot be traced: {self._traced.untraceable['']}")

    def _is_inside_untraceable(self, inner: str) -> bool:
        return any(
            inner != path and under(inner, path) for path in self._traced.untraceable if path
        )
