"""Find the sites of a model, and each block that cannot be one with its reason.

DESIGN: trace every composite submodule alone; its residual adds are plain to see. A block is the
smallest module with a residual add, or a repeated module without one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from updp.blocks.chain import NotAChain, read_chain
from updp.blocks.read import Site, read_site
from updp.blocks.region import Region, residual_regions, whole_region
from updp.blocks.steps import LinearStep
from updp.blocks.trace import NotTraceable, trace_alone


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


def find(model: nn.Module, example: Tensor) -> Findings:
    """List the sites of `model` in the order of its modules.

    `example` is one input batch, (N, C, H, W); the model is run once on it, in evaluation and
    without gradients, and left as it was.
    """
    modes = {m: m.training for m in model.modules()}
    try:
        return _find(model.eval(), example)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _find(model: nn.Module, example: Tensor) -> Findings:
    composites = {n: m for n, m in model.named_modules() if n and any(True for _ in m.children())}
    graphs: dict[str, fx.Graph] = {}
    untraceable: dict[str, str] = {}
    for name, module in composites.items():
        try:
            graphs[name] = trace_alone(module)
        except NotTraceable as error:
            untraceable[name] = str(error)
    residual = _smallest({n: r for n, g in graphs.items() if (r := residual_regions(g))})
    plain = _repeated(composites, graphs, residual)
    calls = _record_calls(model, example, [*residual, *plain])

    sites: list[Site] = []
    unusable: list[Unusable] = []
    for name in composites:  # module order
        regions = residual.get(name) or plain.get(name) or []
        kind = type(composites[name]).__name__
        for region in regions:
            label = _label(name, region, graphs[name], composites[name], len(regions))
            try:
                sites.append(
                    read_site(label, name, composites[name], graphs[name], region, calls[name])
                )
            except (NotAChain, NotTraceable) as error:
                unusable.append(Unusable(label, kind, str(error)))
    blocks = set(residual) | set(plain)
    unusable += [
        Unusable(n, type(composites[n]).__name__, f"it cannot be traced: {reason}")
        for n, reason in _lost(untraceable, blocks, composites).items()
    ]
    sites = _apart(sites, unusable)
    used = {site.block for site in sites}
    return Findings(tuple(sites), tuple(unusable), {n: graphs[n] for n in used})


def _apart(sites: list[Site], unusable: list[Unusable]) -> list[Site]:
    """The sites less those that overlap an earlier one of their block, or have its name."""
    kept: list[Site] = []
    for site in sites:
        mine = _inside(site.region)
        other = next((s for s in kept if s.block == site.block and mine & _inside(s.region)), None)
        if other is not None:
            reason = f"its skip holds the site {other.name}"
        elif site.name in (s.name for s in kept):
            reason = "its largest module is another branch's too"
        else:
            kept.append(site)
            continue
        unusable.append(Unusable(site.name, site.kind, reason))
    return kept


def _inside(region: Region) -> set[str]:
    return {*region.branch, *region.skip, region.exit}


def _smallest(found: dict[str, list[Region]]) -> dict[str, list[Region]]:
    """Drop modules that contain another residual module."""
    return {n: r for n, r in found.items() if not any(o.startswith(f"{n}.") for o in found)}


def _repeated(
    composites: dict[str, nn.Module], graphs: dict[str, fx.Graph], residual: dict[str, list[Region]]
) -> dict[str, list[Region]]:
    """Modules without a residual add whose class occurs again and which hold a chain to merge."""
    counts = Counter(type(m) for m in composites.values())
    found: dict[str, list[Region]] = {}
    for name in reversed(composites):  # children before parents
        module = composites[name]
        related = any(_nested(name, other) for other in (*residual, *found))
        if related or counts[type(module)] < 2 or isinstance(module, nn.Sequential):
            continue
        if name in graphs and (region := whole_region(graphs[name])):
            try:
                chain = read_chain(module, graphs[name], region.branch, 4)
            except NotAChain:
                continue
            if sum(isinstance(s, LinearStep) for s in chain.steps) > 1:
                found[name] = [region]
    return found


def _nested(a: str, b: str) -> bool:
    return a.startswith(f"{b}.") or b.startswith(f"{a}.")


def _lost(
    untraceable: dict[str, str], blocks: set[str], composites: dict[str, nn.Module]
) -> dict[str, str]:
    """Untraceable modules that may be blocks: outermost, apart from every block that was found."""
    lost: dict[str, str] = {}
    for name, reason in untraceable.items():  # parents come first
        apart = not any(_nested(name, other) for other in (*blocks, *lost))
        linear = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in composites[name].modules())
        if apart and linear > 1:
            lost[name] = reason
    return lost


def _record_calls(model: nn.Module, example: Tensor, names: list[str]) -> dict[str, list]:
    """Arguments of each call of the named modules in one forward."""
    calls: dict[str, list] = {name: [] for name in names}

    def recorder(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            def copy(v: object) -> object:
                return v.clone() if isinstance(v, Tensor) else v

            calls[name].append(
                (tuple(copy(a) for a in args), {k: copy(v) for k, v in kwargs.items()})
            )

        return hook

    handles = [
        model.get_submodule(n).register_forward_pre_hook(recorder(n), with_kwargs=True)
        for n in names
    ]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _label(name: str, region: Region, graph: fx.Graph, block: nn.Module, count: int) -> str:
    """`blocks.7`, or `blocks.7:mlp` after the branch's largest module when there are several."""
    if count == 1:
        return name
    nodes = {n.name: n for n in graph.nodes}
    modules = [str(nodes[n].target) for n in region.branch if nodes[n].op == "call_module"]
    size = {m: sum(p.numel() for p in block.get_submodule(m).parameters()) for m in modules}
    return f"{name}:{max(size, key=size.__getitem__) if size else region.branch[-1]}"
