"""What the sites found so far hold, so that no other site can take it."""

from torch import fx

from updp.blocks.modules import count_operators
from updp.blocks.paths import meet, under
from updp.blocks.reading.site import Site
from updp.blocks.traced_model import TracedModel


class Claims:
    """The sites of a model found so far, with the modules and nodes that they hold.

    sites:  in the order in which they were taken
    paths:  paths of modules, and nodes as `block#node`
    """

    def __init__(self, traced: TracedModel) -> None:
        self._traced = traced
        self.sites: list[Site] = []
        self.paths: set[str] = set()

    def take(self, site: Site) -> None:
        """Add a site with what it holds."""
        self.sites.append(site)
        for node in self._nodes(site):
            self.paths.update(self._traced.paths(site.block, node))

    def is_free(self, site: Site) -> bool:
        """Whether a site has another name than all others, and nothing that they hold."""
        named = site.name in (s.name for s in self.sites) or self.bypass(site)
        paths = (self._traced.paths(site.block, node) for node in self._nodes(site))
        return not named and not any(self.meet(*own) for own in paths)

    def meet(self, *paths: str) -> bool:
        """Whether one of the paths is held, holds a held one, or is inside of one."""
        return meet(paths, self.paths)

    def holds_site(self, calls: list[str]) -> str:
        """The first site within the modules `calls`, as the reason why their caller is none."""
        held = (s for s in self.sites if any(under(s.block, path) for path in calls))
        return next((f"it holds the site {site.name}" for site in held), "")

    def overlap(self, site: Site) -> str:
        """Reason why a residual branch conflicts with a site already taken; empty if none."""
        for other in self.sites:
            if other.block == site.block and other.region.inside & site.region.inside:
                return f"its skip holds the site {other.name}"
            if other.name == site.name:
                return "its largest module is another branch's too"
        return self.bypass(site)

    def bypass(self, site: Site) -> str:
        """Reason why the forward of a site's block would not run, or end others'; empty if none.

        A block with a site runs its graph. That may call the parts of a module within it one by
        one, and not the module itself.
        """
        for other in self.sites:
            if self._bypasses(site.block, other.block) or self._bypasses(other.block, site.block):
                return f"its forward is part of another one's, with the site {other.name}"
        return ""

    def _bypasses(self, outer: str, inner: str) -> bool:
        """Whether the graph of the module `outer` calls parts of `inner`, and not `inner`."""
        if inner == outer or not under(inner, outer):
            return False
        calls = (n for n in self._traced.graphs[outer].nodes if n.op == "call_module")
        paths = {f"{outer}.{node.target}".lstrip(".") for node in calls}
        return inner not in paths and any(under(path, inner) for path in paths)

    def count_free(self, name: str) -> int:
        """Number of a module's operators that no site has taken; merging needs two."""
        return sum(
            count_operators(self._traced.modules[name].get_submodule(str(node.target)))
            for node in self._traced.graphs[name].nodes
            if node.op == "call_module" and not self.meet(*self._traced.paths(name, node))
        )

    def _nodes(self, site: Site) -> list[fx.Node]:
        nodes = self._traced.graphs[site.block].nodes
        return [node for node in nodes if node.name in site.region.inside]
