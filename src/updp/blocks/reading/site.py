"""Read a region of a block as a site, and check the result against the block itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from updp.blocks.modules import like_of, seeded_input
from updp.blocks.nested import is_float_tensor
from updp.blocks.reading.chain import read_chain
from updp.blocks.reading.cursor import NotAChain
from updp.blocks.reading.layouts import layout_of
from updp.blocks.reading.parallel import read_paths
from updp.blocks.reading.scaling import NotScalable, scaled, scaled_sizes
from updp.blocks.reading.steps import ActStep, Chain, to_layout
from updp.blocks.surgery import extract
from updp.blocks.tracing.contexts import context_of_some
from updp.blocks.tracing.region import Region
from updp.errors import is_out_of_memory

_TOLERANCE = 1e-4  # relative, float32: between a chain and the block it was read from
_MISREAD = "the steps read from its graph do not compute what it computes"


@dataclass(frozen=True)
class Site:
    """A branch that may be replaced.

    name:       module path, and `:module` with its largest module if the block has several sites
    block:      module path of its block
    kind:       class name of its block
    region:     its nodes in the block's graph; `region.add` is None if there is no skip
    branch:     the branch as a chain; None if it is not one: then it can be dropped, not merged
    skip:       the skip as a chain, empty for the identity; None if it is not one and stays as is
    post:       the activation at the end of the block, or None
    shape_in:   shape of the tensor at the entry, in the example
    shape_out:  shape of the tensor at the exit, in the example
    layout:     layout of the tensor at the exit: first | last
    extras:     values of `region.extras` in the example
    calls:      number of calls of the block in one forward of the model
    work:       the same, with each call weighted by its size relative to the first call's
    why:        reason why `branch` is None
    paths:      parallel chains whose sum is the region, if it is linear already
    samples:    number of samples in the example
    larger:     shape of the entry, and values of the extras, with one sample more
    more_calls: number of calls that one sample more adds, where each has its own
    contiguous_in, contiguous_out: whether the tensors at the entry and the exit are contiguous
    """

    name: str
    block: str
    kind: str
    region: Region
    branch: Chain | None
    skip: Chain | None
    post: ActStep | None
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    layout: str
    extras: tuple[Any, ...] = ()
    calls: int = 1
    work: float = 1.0
    why: str = ""
    paths: tuple[Chain, ...] = ()
    samples: int = 1
    larger: tuple[Any, ...] = ()
    more_calls: int = 0
    contiguous_in: bool = True
    contiguous_out: bool = False

    @property
    def chain(self) -> Chain:
        """The branch, for a site where it is known to be a chain."""
        assert self.branch is not None, f"{self.name} is no chain: {self.why}"
        return self.branch

    @property
    def channels(self) -> int:
        """Number of channels at the exit."""
        return self.shape_out[1 if self.layout == "first" else -1]

    @property
    def dims(self) -> int:
        """Number of axes of an operator on maps at the exit, as made by `fit.as_maps`."""
        return len(self.shape_out) - 2 if self.layout == "first" else 2

    def needs_contiguous(self, layout: str) -> bool:
        """Whether what computes in `layout` must make its output contiguous, as the block's is.

        A permuted tensor, or one that follows another's strides, would fail in a later `view`.
        """
        own = layout == self.layout and self.contiguous_in
        return self.contiguous_out and not own and len(self.shape_out) > 2

    def example(self, part: nn.Module) -> tuple[Any, ...]:
        """Seeded random values for the entry, and the extras, in the dtype of `part`."""
        x = seeded_input(self.shape_in, like_of(part))
        return (x, *(extra.to(x) if is_float_tensor(extra) else extra for extra in self.extras))

    def shape_for(self, samples: int) -> tuple[int, ...]:
        """Shape of the entry for `samples` samples. Raises NotScalable if it is unknown."""
        if not self.larger:
            raise NotScalable("the model calls it for some numbers of samples only")
        return scaled_sizes(self.shape_in, self.larger[0], samples - self.samples)

    def work_for(self, samples: int) -> float:
        """Work of a forward on `samples` samples, in units of the block's first call."""
        calls = self.calls + self.more_calls * (samples - self.samples)
        return self.work * max(calls, 1) / self.calls

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of the entry without the axis that grows with the samples (else the first axis)."""
        grown = (a != b for a, b in zip(self.shape_in, self.larger[0], strict=True))
        axis = next((axis for axis, grows in enumerate(grown) if grows), 0)
        return (*self.shape_in[:axis], *self.shape_in[axis + 1 :])

    def inputs_for(self, samples: int, device: torch.device) -> tuple[Any, ...]:
        """Seeded random values for the entry, and the extras, for a batch of `samples` samples.

        Raises NotScalable if they are unknown.
        """
        x = seeded_input(self.shape_for(samples)).to(device)
        return (x, *scaled(self.extras, self.larger[1:], samples - self.samples))


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
