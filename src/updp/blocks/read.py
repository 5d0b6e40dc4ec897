"""Read one region of a block as a site, and check what was read against the block itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from updp.blocks.chain import NotAChain, read_chain
from updp.blocks.region import Region
from updp.blocks.steps import ActStep, Chain, to_layout
from updp.blocks.trace import run_graph

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


def read_site(
    label: str, name: str, block: nn.Module, graph: fx.Graph, region: Region, calls: list
) -> Site:
    """The region as a site called `label` of the block at path `name`.

    `calls` holds the (args, kwargs) of each call of the block in one forward of the model.

    Raises:
        NotAChain: it cannot be a site; the text says why.
        NotTraceable: the block cannot be run from its graph.
    """
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
    skip = None if region.add is None else _read_skip(block, graph, region, branch, values)
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


def _read_skip(
    block: nn.Module, graph: fx.Graph, region: Region, branch: Chain, values: dict[str, object]
) -> Chain | None:
    """The skip as a chain in the branch's layout without activations, if it is one."""
    entry = values[region.entry]
    assert isinstance(entry, Tensor)
    try:
        skip = read_chain(block, graph, region.skip, entry.ndim)
        if not skip.steps:  # nothing on an identity decides its layouts
            return replace(
                skip,
                layout=branch.layout,
                layout_in=branch.layout_in,
                layout_out=branch.layout_in,
            )
        if any(isinstance(s, ActStep) for s in skip.steps) or skip.layout != branch.layout:
            return None
        _check(skip, entry, values[region.skip[-1]])
    except NotAChain:
        return None
    return skip


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
