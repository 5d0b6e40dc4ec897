"""Name of a site, from its block and the largest module of its branch."""

from collections import Counter

from torch import fx, nn

from updp.blocks.modules import count_operators
from updp.blocks.tracing.region import Region


def site_name(path: str, block: nn.Module, graph: fx.Graph, region: Region, count: int) -> str:
    """Name of a site: `blocks.7`, or `blocks.7:mlp` (largest module) if one of `count`."""
    if count == 1 and path:
        return path
    return f"{path}:{_largest(block, graph, region) or region.branch[-1]}"


def why_repeated(block: nn.Module, graph: fx.Graph, region: Region) -> str:
    """Why a branch is no site where all of its operators run elsewhere, too; empty if not.

    They stay for the other runs, so whatever replaced this one would only be added to the model.
    """
    calls = [node for node in graph.nodes if node.op == "call_module"]
    runs = Counter(str(node.target) for node in calls)
    inside = Counter(str(node.target) for node in calls if node.name in region.branch)
    operators = [target for target in inside if count_operators(block.get_submodule(target))]
    if not operators or any(inside[target] == runs[target] for target in operators):
        return ""
    times, largest = max(runs[target] for target in operators), _largest(block, graph, region)
    return f"`{largest}` runs {times} times in one forward, each time with other neighbours"


def _largest(block: nn.Module, graph: fx.Graph, region: Region) -> str:
    """The module of a branch with the most parameters; empty if it calls none."""
    nodes = {n.name: n for n in graph.nodes}
    branch = [nodes[n] for n in region.branch]
    called = [n for n in branch if "child" in n.meta or n.op == "call_module"]
    modules = [str(n.meta.get("child", n.target)) for n in called]
    size = {m: sum(p.numel() for p in block.get_submodule(m).parameters()) for m in modules}
    return max(size, key=size.__getitem__) if size else ""
