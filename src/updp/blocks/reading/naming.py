"""Name of a site, from its block and the largest module of its branch."""

from torch import fx, nn

from updp.blocks.tracing.region import Region


def site_name(path: str, block: nn.Module, graph: fx.Graph, region: Region, count: int) -> str:
    """Name of a site: `blocks.7`, or `blocks.7:mlp` (largest module) if one of `count`."""
    if count == 1 and path:
        return path
    nodes = {n.name: n for n in graph.nodes}
    branch = [nodes[n] for n in region.branch]
    called = [n for n in branch if "child" in n.meta or n.op == "call_module"]
    modules = [str(n.meta.get("child", n.target)) for n in called]
    size = {m: sum(p.numel() for p in block.get_submodule(m).parameters()) for m in modules}
    return f"{path}:{max(size, key=size.__getitem__) if size else region.branch[-1]}"
