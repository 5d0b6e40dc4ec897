"""Find the sites of a model, and each block that cannot be one with its reason.

DESIGN: trace every composite submodule alone; its residual adds are plain to see. A block is the
smallest module with a residual add, or a repeated module without one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from updp.blocks.chain import NotAChain, read_chain
from updp.blocks.region import Region, residual_regions, whole_region
from updp.blocks.steps import ActStep, Chain, LinearStep, to_layout
from updp.blocks.trace import NotTraceable, run_graph, trace_alone

TOLERANCE = 1e-4  # float32, relative: the chain that was read against the block itself
_MISREAD = "the steps read from its graph do not compute what it computes"


@dataclass(frozen=True)
class Site:
    """A branch that may be replaced.

    Shapes are those of the tensors at its entry and exit, batch first. `skip` is None when the
    skip is not a chain (it then stays as it is); it is an empty chain for the identity, and
    `region.add` is None when there is no skip at all. `post` follows the add inside the block.
    """

    name: str
    block: str
    kind: str
    region: Region
    branch: Chain
    skip: Chain | None
    post: ActStep | None
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]


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
                    _read(label, name, composites[name], graphs[name], region, calls[name])
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


def _read(
    label: str, name: str, block: nn.Module, graph: fx.Graph, region: Region, calls: list
) -> Site:
    if len(calls) != 1:
        raise NotAChain(f"the model calls it {len(calls)} times, not once")
    args, kwargs = calls[0]
    with torch.no_grad():
        values = run_graph(block, graph, args, kwargs)
    entry, last = values[region.entry], values[region.branch[-1]]
    if not isinstance(entry, Tensor):
        raise NotAChain("its input is no tensor")
    branch = read_chain(block, graph, region.branch, entry.ndim)
    names = [s.name for s in branch.linears]
    if len(names) < 2:
        raise NotAChain("it has fewer than two linear operators, so there is nothing to merge")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise NotAChain(f"it calls `{repeated[0]}` more than once")
    _check(branch, entry, last)
    skip: Chain | None = None
    if region.add is not None:
        try:
            skip = read_chain(block, graph, region.skip, entry.ndim)
            # layouts that nothing on the skip decides are the branch's
            if not skip.steps:
                skip = replace(
                    skip,
                    layout=branch.layout,
                    layout_in=branch.layout_in,
                    layout_out=branch.layout_in,
                )
            if any(isinstance(s, ActStep) for s in skip.steps) or skip.layout != branch.layout:
                skip = None
            else:
                _check(skip, entry, values[region.skip[-1]] if region.skip else entry)
        except NotAChain:
            skip = None
    region, post = _with_post(block, graph, region)
    out = values[region.exit]
    assert isinstance(out, Tensor)
    if region.add is not None:
        _check_whole(graph, region, branch, post, values)
    return Site(
        label,
        name,
        type(block).__name__,
        region,
        branch,
        skip,
        post,
        tuple(entry.shape),
        tuple(out.shape),
    )


def _check(chain: Chain, x: Tensor, expected: object) -> None:
    try:
        with torch.no_grad():
            y = chain.keep(x)
    except RuntimeError as error:  # shapes that do not fit
        raise NotAChain(_MISREAD) from error
    if not _equal(y, expected):
        raise NotAChain(_MISREAD)


def _check_whole(
    graph: fx.Graph,
    region: Region,
    branch: Chain,
    post: ActStep | None,
    values: dict[str, object],
) -> None:
    """Branch and skip were read; that nothing but they makes the exit is checked here."""
    for node in graph.nodes:
        if node.name in (*region.branch, *region.skip):
            for source in node.all_input_nodes:
                if source.op == "placeholder" and source.name != region.entry:
                    raise NotAChain(f"argument `{source.name}` enters it")
    entry, beside = values[region.entry], values[(region.entry, *region.skip)[-1]]
    assert isinstance(entry, Tensor)
    assert isinstance(beside, Tensor)
    with torch.no_grad():
        y = branch.keep(entry)
        wide = y.shape == (total := y + beside).shape
        if post is not None:
            total = to_layout(total, branch.layout_out, branch.layout) if y.ndim == 4 else total
            total = post.keep(total, branch.layout)
            total = to_layout(total, branch.layout, branch.layout_out) if y.ndim == 4 else total
    if not wide:
        raise NotAChain("its branch is broadcast onto its skip")
    if not _equal(total, values[region.exit]):
        raise NotAChain("its exit is not its branch plus its skip: it scales or overwrites one")


def _equal(y: Tensor, expected: object) -> bool:
    assert isinstance(expected, Tensor)
    if y.shape != expected.shape:
        return False
    return bool((y - expected).norm() <= TOLERANCE * expected.norm() + 1e-12)


def _with_post(block: nn.Module, graph: fx.Graph, region: Region) -> tuple[Region, ActStep | None]:
    """Take in the activation that follows the add, where there is one."""
    node = next(n for n in graph.nodes if n.name == region.exit)
    while region.add is not None and len(node.users) == 1:
        node = next(iter(node.users))
        if node.op == "output":
            break
        try:
            steps = read_chain(block, graph, [node.name], 4).steps
        except NotAChain:
            break
        if len(steps) > 1 or not all(isinstance(s, ActStep) for s in steps):
            break
        region = replace(region, exit=node.name)
        if steps:
            return region, steps[0]  # type: ignore[return-value]
    return region, None


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
