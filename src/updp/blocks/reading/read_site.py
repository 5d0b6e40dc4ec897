"""Read a region of a block's graph as a site: its branch as a chain, its skip, its layout."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from updp.blocks.reading.chain import read_chain
from updp.blocks.reading.cursor import NotAChain
from updp.blocks.reading.layouts import layout_of
from updp.blocks.reading.parallel import read_paths
from updp.blocks.reading.site import Site
from updp.blocks.reading.steps import ActStep, Chain, to_layout
from updp.blocks.surgery import extract
from updp.blocks.tracing.contexts import context_of_some
from updp.blocks.tracing.region import Region
from updp.errors import is_out_of_memory

_TOLERANCE = 1e-4  # relative, float32: between a chain and the block it was read from
_MISREAD = "the steps read from its graph do not compute what it computes"


def read_site(
    name: str,
    path: str,
    block: nn.Module,
    graph: fx.Graph,
    region: Region,
    calls: Sequence[Mapping[str, Any]],
) -> Site:
    """Read a region as a site.

    Args:
        name: name of the site.
        path: module path of the block.
        calls: value of every node by name, for each call of the block in one forward of the model.

    Raises:
        NotAChain: the region cannot be a site; the text is the reason.
    """
    values = calls[0]
    entry, last = values[region.entry], values[region.branch[-1]]
    if not isinstance(entry, Tensor) or not isinstance(last, Tensor):
        raise NotAChain("its input or output is no tensor")
    if entry.is_nested or last.is_nested:
        raise NotAChain("its tensor is nested: it has images of several sizes")
    if entry.is_complex() or last.is_complex():
        raise NotAChain("its tensors hold complex numbers")
    for others in calls[1:]:
        if others[region.entry].ndim != entry.ndim:
            raise NotAChain("the model calls it with maps and with tokens")
    region, post = _with_post(block, graph, region, values)
    if context := context_of_some(graph, region.inside):
        raise NotAChain(f"only some of it runs within {context}")
    branch: Chain | None = None
    skip, paths, why = None, tuple[Chain, ...](), ""
    try:
        branch = read_chain(block, graph, region.branch, entry)
        for each in calls:
            _check(branch, each[region.entry], each[region.branch[-1]])
        _check_mergeable(branch)
    except NotAChain as error:
        branch, why = None, str(error)
    if region.add is not None:
        _check_add(region, branch, post, values)
        if branch is None:
            paths = read_paths(block, graph, region, values)
        else:
            skip = _read_skip(block, graph, region, branch, values)
    elif branch is not None and isinstance(end := branch.steps[-1], ActStep):
        post = end
        branch = replace(branch, steps=branch.steps[:-1])
    out = values[region.exit]
    if branch is None and region.add is None and out.shape != entry.shape:
        raise NotAChain(why)
    return Site(
        name=name,
        block=path,
        kind=type(block).__name__,
        region=region,
        branch=branch,
        skip=skip,
        post=post,
        shape_in=tuple(entry.shape),
        shape_out=tuple(out.shape),
        layout=branch.layout_out if branch else _layout(block, graph, region, values),
        extras=tuple(values[extra] for extra in region.extras),
        calls=len(calls),
        work=sum(others[region.entry].numel() for others in calls) / max(entry.numel(), 1),
        why=why,
        paths=paths,
        contiguous_in=entry.is_contiguous(),
        contiguous_out=out.is_contiguous(),
    )


def _check_mergeable(branch: Chain) -> None:
    names = [s.name for s in branch.linears]
    if len(names) < 2:
        raise NotAChain("it has fewer than two linear operators, so there is nothing to merge")
    if repeated := [each for each in names if names.count(each) > 1]:
        raise NotAChain(f"it calls `{repeated[0]}` more than once")


def _layout(block: nn.Module, graph: fx.Graph, region: Region, values: Mapping[str, Any]) -> str:
    """Layout of a branch that is not a chain, from the inputs of its modules."""
    part = extract(block, graph, region.entry, region.branch[-1], region.extras)
    return layout_of(part, *(values[each] for each in (region.entry, *region.extras)))


def _read_skip(
    block: nn.Module, graph: fx.Graph, region: Region, branch: Chain, values: Mapping[str, Any]
) -> Chain | None:
    """The skip as a chain in the branch's layout, or None if it is not one or has activations."""
    try:
        skip = read_chain(block, graph, region.skip, values[region.entry])
        if not skip.steps:  # an identity has no step to show its layout
            return Chain((), branch.layout, branch.layout_in, branch.layout_in, branch.dims)
        if any(isinstance(s, ActStep) for s in skip.steps) or skip.layout != branch.layout:
            return None
        _check(skip, values[region.entry], values[region.skip[-1]])
    except NotAChain:
        return None
    return skip


def _check(chain: Chain, x: Tensor, expected: object) -> None:
    try:
        with torch.no_grad():
            y = chain.keep(x)
    except RuntimeError as error:  # the shapes do not fit
        if is_out_of_memory(error):
            raise
        raise NotAChain(_MISREAD) from error
    if not _equal(y, expected):
        raise NotAChain(_MISREAD)


def _check_add(
    region: Region, branch: Chain | None, post: ActStep | None, values: Mapping[str, Any]
) -> None:
    """Check that a residual region returns the activation of the sum of branch and skip."""
    entry, beside = values[region.entry], values[(region.entry, *region.skip)[-1]]
    if not isinstance(beside, Tensor):
        raise NotAChain("its skip is no tensor")
    with torch.no_grad():
        y = values[region.branch[-1]] if branch is None else branch.keep(entry)
        total = y + beside
        if not y.shape == total.shape == beside.shape:
            raise NotAChain("its branch is broadcast onto its skip")
        if post is not None:
            layout = "first" if branch is None else branch.layout_out
            canonical = layout if branch is None else branch.layout
            total = post.keep(to_layout(total, layout, canonical), canonical)
            total = to_layout(total, canonical, layout)
    if not _equal(total, values[region.exit]):
        raise NotAChain("its exit is not its branch plus its skip: it scales or overwrites one")


def _equal(y: Tensor, expected: object) -> bool:
    assert isinstance(expected, Tensor)
    if y.shape != expected.shape:
        return False
    return bool((y - expected).norm() <= _TOLERANCE * expected.norm() + 1e-12)


def _with_post(
    block: nn.Module, graph: fx.Graph, region: Region, values: Mapping[str, Any]
) -> tuple[Region, ActStep | None]:
    """Extend a residual region by the activation behind its add, if there is one."""
    node = next(n for n in graph.nodes if n.name == region.exit)
    while region.add is not None and len(node.users) == 1:
        x, node = values[node.name], next(iter(node.users))
        if node.op == "output":
            break
        try:
            chain = read_chain(block, graph, [node.name], x)
        except NotAChain:
            break
        steps = chain.steps
        # A permutation has no steps, but its output has another layout.
        if len(steps) > 1 or not all(isinstance(s, ActStep) for s in steps):
            break
        if chain.layout_in != chain.layout_out:
            break
        region = replace(region, exit=node.name, tail=(*region.tail, node.name))
        if steps:
            return region, steps[0]  # type: ignore[return-value]
    return region, None
