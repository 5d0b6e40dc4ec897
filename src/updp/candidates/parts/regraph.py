"""Forms that run a copy of their block's graph on other modules."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

from updp.blocks import TracedSite
from updp.blocks.surgery import Emit
from updp.blocks.tracing.region import Region
from updp.candidates.base import Form, blend


class RewiredForm(Form):
    """The block, and `pruned`: its region on other modules, from entry and extras to exit."""

    def __init__(self, traced: TracedSite, pruned: fx.GraphModule) -> None:
        super().__init__()
        self._keep: list[Callable[..., Tensor]] = [traced.whole()]
        self._pruned = [pruned]

    def forward(self, x: Tensor, *extras: Any, lam: float = 1.0) -> Tensor:
        """See `Form.forward`."""
        y: Tensor = self._pruned[0](x.clone(), *extras)
        if lam < 1:
            y = blend(self._keep[0](x, *extras), y, lam)
        return y


def emit_rewired(
    region: Region,
    names: Mapping[str, str],
    left_out: str = "",
    chosen: Mapping[str, str] | None = None,
) -> Emit:
    """Return a function that copies a region's nodes into a graph, with other targets.

    Args:
        region: the part of the graph to copy.
        names: new target for each old one; other targets stay.
        left_out: target of a node to skip; its value becomes the input of the region.
        chosen: target of a module to pass a value from outside through, by the node's name.
    """

    def emit(graph: fx.Graph, x: fx.Node, skip: fx.Node) -> fx.Node:
        new: dict[fx.Node, fx.Node] = {}
        outside = {node.name: node for node in graph.nodes}
        for name, module in (chosen or {}).items():
            new[outside[name]] = graph.call_module(module, (outside[name],))
        for node in [n for n in graph.nodes if n.name in region.inside - {*region.skip}]:
            if left_out and node.target == left_out:
                new[node] = last = x
                continue
            new[node] = last = graph.node_copy(node, lambda n: new.get(n, n))
            if node.op == "call_module" and node.target in names:
                last.target = names[str(node.target)]
        return last

    return emit
