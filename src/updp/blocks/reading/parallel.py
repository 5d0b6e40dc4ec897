"""Read a residual region that is already linear, as in RepVGG, as parallel chains."""

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from updp.blocks.reading.chain import read_chain
from updp.blocks.reading.cursor import NotAChain
from updp.blocks.reading.linear import LinearStep
from updp.blocks.reading.steps import (
    Chain,
    NormStep,
    ScaleStep,
    ShuffleStep,
    Step,
    is_affine,
)
from updp.blocks.tracing.region import Region, data_nodes, is_add

_SUBTRACTIONS = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
_MAX_PATHS = 16


def read_paths(
    block: nn.Module, graph: fx.Graph, region: Region, values: Mapping[str, Any]
) -> tuple[Chain, ...]:
    """Read every path from a region's entry to its add as a chain; the region is their sum.

    Returns an empty tuple if a path is not linear. `values` are the node values by name.
    """
    nodes = {n.name: n for n in graph.nodes}
    data = data_nodes(graph)
    known: dict[fx.Node, list[tuple[Step, ...]]] = {nodes[region.entry]: [()]}
    layouts: set[str] = set()

    def paths(node: fx.Node) -> list[tuple[Step, ...]]:
        if node in known:
            return known[node]
        if node.name not in region.inside:
            raise NotAChain(f"`{node.name}` enters it")
        inputs = [p for p in node.all_input_nodes if p in data]
        if is_add(node) and len(inputs) == 2 and not node.kwargs:
            found = [path for side in inputs for path in paths(side)]
        elif node.target in _SUBTRACTIONS and len(inputs) == 2 and not node.kwargs:
            minus = ScaleStep(node.name, torch.tensor(-1.0, dtype=torch.float64))
            first, second = (paths(n) for n in node.args)  # type: ignore[arg-type]
            found = [*first, *((*path, minus) for path in second)]
        elif len(inputs) == 1 and isinstance(x := values[inputs[0].name], Tensor):
            chain = read_chain(block, graph, [node.name], x)
            kinds = (LinearStep, ShuffleStep)
            linear = all(isinstance(s, kinds) or is_affine(s) for s in chain.steps)
            if not linear or chain.layout_in != chain.layout_out:
                raise NotAChain(f"`{node.name}` is not linear")
            layouts.update({chain.layout} if chain.steps else set())
            found = [(*path, *chain.steps) for path in paths(inputs[0])]
        else:
            raise NotAChain(f"`{node.name}` takes several inputs")
        known[node] = found
        if len(found) > _MAX_PATHS:
            raise NotAChain("it has too many paths")
        return found

    assert region.add is not None
    try:
        found = paths(nodes[region.add])
    except NotAChain:
        return ()
    if len(layouts) != 1 or not any(isinstance(s, LinearStep) for path in found for s in path):
        return ()
    (layout,) = layouts

    def laid_out(step: Step) -> Step:
        return replace(step, layout=layout) if isinstance(step, NormStep) else step

    paths_of_steps = (tuple(map(laid_out, path)) for path in found)
    dims = values[region.entry].ndim - 2 if layout == "first" else 2
    return tuple(Chain(steps, layout, layout, layout, dims) for steps in paths_of_steps)
