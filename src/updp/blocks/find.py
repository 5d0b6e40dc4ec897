"""Find the sites of a model, and the reason for each block that cannot be one.

Every composite module is traced alone, so that its residual adds are in its own graph. A block is
the smallest module with a residual add, or a chain or a repeated module without one.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from updp.blocks.claims import Claims
from updp.blocks.findings import Findings
from updp.blocks.modules import count_operators, hooks, to_eval
from updp.blocks.nested import Samples, count, map_tensors
from updp.blocks.paths import meet, nested, under
from updp.blocks.reading.cursor import NotAChain
from updp.blocks.reading.growth import with_larger
from updp.blocks.reading.read_site import read_site
from updp.blocks.reading.runs import plain_regions, why_no_chain
from updp.blocks.reading.site import Site
from updp.blocks.refusals import Refusals
from updp.blocks.repeatable import RecordedRun
from updp.blocks.rewrite_check import usable_findings
from updp.blocks.traced_model import TracedModel
from updp.blocks.tracing.calls import cloned
from updp.blocks.tracing.node_values import NoValues, Values
from updp.blocks.tracing.region import Region, joins_maps, place_of, whole_region
from updp.blocks.tracing.trace import restored, trains_otherwise
from updp.io.seeds import random_state
from updp.io.torch_state import exact_float32

_log = logging.getLogger(__name__)


def find(model: nn.Module, example: Samples) -> Findings:
    """Find the sites of `model`, in the order of its modules.

    The model is run on `example` in evaluation mode, without gradients, and is not changed. Raises
    UserError if its output differs between runs.
    """
    outputs: list[Any] = []
    # Seeded: a module that draws at random what it runs must give the same sites again.
    with random_state(0), exact_float32(), torch.no_grad(), restored(*model.modules()):
        keep = model.register_forward_hook(lambda m, x, y: outputs.append(map_tensors(cloned, y)))
        with hooks([keep]):
            finder = _Finder(to_eval(model), example)
        images = (example, finder.traced.larger)
        runs = [RecordedRun(x, y) for x, y in zip(images, outputs, strict=True)]
        return usable_findings(model, finder.find(), runs)


class _Finder:
    """One search through a model: the sites found so far, and what was refused."""

    def __init__(self, model: nn.Module, example: Samples) -> None:
        self.traced = TracedModel(model, example)
        self.modules, self.graphs = self.traced.modules, self.traced.graphs
        self.claims = Claims(self.traced)
        self.refusals = Refusals(self.traced, self.claims)

    def find(self) -> Findings:
        """Search in order of preference: later steps cannot use what an earlier one takes."""
        residual = {n: regions for n in self.graphs if (regions := self._regions(n))}
        outer = [n for n in residual if any(o != n and under(o, n) for o in residual)]
        around = {path: residual.pop(path) for path in outer}
        droppable: list[Site] = []
        for path, regions in residual.items():
            droppable += self._take_branches(path, regions, len(regions))
        for path, regions in around.items():  # its own branches, not in or around a residual block
            own = [r for r in regions if not meet(self.traced.called(path, r), residual)]
            droppable += self._take_branches(path, own, len(regions) + 1)
        for path in self.graphs:
            self._take_chains(path, residual)
        for site in sorted(droppable, key=lambda s: -len(s.region.inside)):
            calls = self.traced.called(site.block, site.region)
            if self.claims.is_free(site):
                self.claims.take(site)
            elif held := self.claims.holds_site(calls):
                self.refusals.add(site.name, site.block, held)
        self._take_repeated(residual)
        self.refusals.list_all(residual, around)
        return self._findings()

    def _findings(self) -> Findings:
        """What was found, with sites in the order of the model's modules."""
        place = {path: i for i, path in enumerate(self.modules)}
        found = self.claims.sites
        found.sort(key=lambda s: (place[s.block], place_of(self.graphs[s.block], s.region)))
        if not found and not self.refusals.found:
            every = ((self.modules[n], g, self.traced.values(n)) for n, g in self.graphs.items())
            known = ((m, g, v[0]) for m, g, v in every if not isinstance(v, NoValues))
            self.refusals.add("", "", why_no_chain(known))
        larger = self.traced.larger_calls
        used = {site.block: self.graphs[site.block] for site in found}
        modal = (n for n in used if self._trains_otherwise(n))
        sites = with_larger(found, self.modules, used, larger, count(self.traced.larger))
        return Findings(sites, tuple(self.refusals.found), used, frozenset(modal))

    def _trains_otherwise(self, path: str) -> bool:
        """Whether a module's forward is another one in training."""
        with self.traced.traced_alike(path):
            return trains_otherwise(
                self.modules[path], self.traced.calls[path][0], self.graphs[path]
            )

    def _regions(self, path: str) -> list[Region]:
        """Residual regions of a module; the others, with reasons, go to `lost`."""
        found = self.traced.residual_adds(path)
        self.refusals.lost += [(path, region, why) for region, why in found if why]
        return [region for region, why in found if not why]

    def _take_branches(self, path: str, regions: list[Region], count: int) -> list[Site]:
        """Take those of a module's `count` residual branches that are chains; return the others."""
        droppable, values = list[Site](), self.traced.values(path)
        for region in regions:
            # In a module that holds residual blocks, an add of vectors belongs to a head.
            if not joins_maps(region, values, vectors=count == len(regions)):
                continue
            name = self.traced.name_of(path, region, count)
            if reason := self.traced.why_repeated(path, region):
                self.refusals.repeated.setdefault((path, name), (region, reason))
                continue
            site = self._read(name, path, region, values)
            if site is None:
                continue
            if site.branch is None:
                droppable.append(site)
            elif reason := self.claims.overlap(site):
                self.refusals.add(name, path, reason)
            else:
                self.claims.take(site)
        return droppable

    def _take_chains(self, path: str, residual: Mapping[str, object]) -> None:
        """Take chains outside of residual branches that contain no residual block."""
        module, graph = self.modules[path], self.graphs[path]
        if any(under(path, held) for held in self.claims.paths) or self.claims.count_free(path) < 2:
            return
        values = self.traced.values(path)
        if isinstance(values, NoValues):
            return

        def is_taken(node: fx.Node) -> bool:
            own, *child = self.traced.paths(path, node)
            return self.claims.meet(own, *child) or any(
                under(r, c) for c in child for r in residual
            )

        regions = plain_regions(module, graph, values[0], is_taken, self.traced.vectors)
        regions = [r for r in regions if self.traced.has_data(path, r)]
        regions = [r for r in regions if not self.traced.why_repeated(path, r)]
        whole = whole_region(graph)
        for region in regions:
            # A chain that fills its module, or is the only one in it, gets the module's name.
            covers = whole is not None and region.inside == whole.inside
            only = len(regions) == 1 and not isinstance(module, nn.Sequential)
            named = path not in residual and (covers or only)
            name = self.traced.name_of(path, region, 1 if named else 2)
            try:
                site = read_site(name, path, module, graph, region, values)
            except NotAChain as error:
                _log.info("%s is no chain: %s", name, error)
                continue
            if site.branch is None:
                _log.info("%s is no chain: %s", name, site.why)
            elif self.claims.is_free(site):
                self.claims.take(site)
                self.refusals.forget(name)

    def _take_repeated(self, residual: Mapping[str, object]) -> None:
        """Take repeated modules that cannot merge but could be dropped."""
        counts = Counter(type(m) for m in self.modules.values())
        seen: list[str] = []
        for path, module in self.modules.items():  # parents first
            if not path or counts[type(module)] < 2 or isinstance(module, nn.Sequential):
                continue
            related = (*residual, *seen, *(s.block for s in self.claims.sites if s.block))
            if any(nested(path, other) for other in related) or self.claims.meet(path):
                continue
            if path not in self.graphs or count_operators(module) < 2:
                continue
            seen.append(path)
            region = whole_region(self.graphs[path])
            if region is None:
                lost = (why for block, _, why in self.refusals.lost if block == path)
                none = "it has no residual add of its own, and not one input and one output"
                self.refusals.add(path, path, next(lost, none))
            elif not self.traced.has_data(path, region):
                continue
            elif site := self._read(path, path, region, self.traced.values(path)):
                if why := self.claims.bypass(site):
                    self.refusals.add(path, path, why)
                else:
                    self.claims.take(site)

    def _read(self, name: str, path: str, region: Region, values: Values | NoValues) -> Site | None:
        """Read a region as a site; if that fails, refuse it and return None."""
        try:
            if isinstance(values, NoValues):
                raise NotAChain(values.reason)
            module, graph = self.modules[path], self.graphs[path]
            return read_site(name, path, module, graph, region, values)
        except NotAChain as error:
            self.refusals.add(name, path, str(error))
            return None
