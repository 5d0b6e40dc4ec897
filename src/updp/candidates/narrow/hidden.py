"""Hidden channels of a branch that is no chain: the input channels of its last operator.

A gated feed-forward multiplies the outputs of two layers; a block of a diffusion network adds an
embedding of the time to its values. So each channel that the last operator reads is made from one
channel of several operators. These are found by walking backwards from that input, through anything
that acts on each channel alone, and into the user's modules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from updp.blocks import Chain, LinearStep, TracedSite
from updp.blocks.modules import UserCodeError
from updp.blocks.paths import under, within
from updp.blocks.reading.chain import read_chain
from updp.blocks.reading.composed import ComposedStep
from updp.blocks.reading.cursor import NotAChain
from updp.blocks.surgery import extract
from updp.blocks.tracing.interpret import NotTraceable
from updp.candidates.narrow.backwards import Backwards
from updp.candidates.narrow.scope import Scope, weight_parameter
from updp.candidates.narrow.slicing import cut_group_norm, cut_inputs, cut_outputs
from updp.fit.channels import entries_of

_TOLERANCE = 1e-4  # relative, float32: between the chain and the block it was read from
_DEPTH = 3  # levels of modules within modules to search for a consumer


@dataclass(frozen=True)
class Producer:
    """An operator that makes all channels `times` times in a row, `size` rows per unit."""

    times: int
    size: int


@dataclass(frozen=True)
class HiddenChannels:
    """Hidden channels, given by paths of modules in the block and nodes of its graph.

    consumer:   the operator that reads the channels
    enter:      computes the consumer's input from the site's entry and extras
    chain:      the branch from the consumer on
    count:      number of channels
    unit:       number of adjoining channels that stay or go together, as in a GroupNorm's group
    producers:  operators that make the channels
    between:    modules with state that act on each channel, each with how many times it has all
    readers:    operators that read the channels to make factors for them
    extras:     nodes outside of the region with one value per channel, each with its axis
    targets:    modules called in the region that are, or contain, one of these modules
    attributes: further attributes of modules that change, each with its amount per unit
    composed:   those modules that combine layers, with their graphs; see `Narrowing.composed`
    factor:     computes the factor per channel, (C,), from the chain's output to the end of the
        branch, or None if there is none; no function: the chain reaches the end
    """

    consumer: str
    enter: Callable[..., Tensor]
    chain: Chain
    count: int
    unit: int
    producers: Mapping[str, Producer]
    between: Mapping[str, int]
    extras: Mapping[str, int]
    targets: tuple[str, ...]
    attributes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    composed: Mapping[str, fx.Graph] = field(default_factory=dict)
    factor: Callable[[], Tensor | None] | None = None
    readers: tuple[str, ...] = ()

    @property
    def cut_modules(self) -> tuple[str, ...]:
        """Paths of the modules that lose channels."""
        return (*self.producers, *self.between, *self.readers, self.consumer)

    def module(self, copies: Mapping[str, nn.Module], name: str) -> nn.Module:
        """Return one of the modules, by its path in the block, in copies of the `targets`."""
        module = within(name, {target: copies[target] for target in self.targets})
        assert module is not None
        return module

    @torch.no_grad()
    def cut(self, copies: Mapping[str, nn.Module], channels: Tensor) -> None:
        """Remove all channels but `channels` (indices) from copies of the `targets`."""
        for name in (*self.readers, self.consumer):
            cut_inputs(self.module(copies, name), channels)
        units, all_units = channels[:: self.unit] // self.unit, self.count // self.unit
        for name, made in self.producers.items():
            rows = entries_of(units, made.size)
            parts = [rows + number * all_units * made.size for number in range(made.times)]
            cut_outputs(self.module(copies, name), torch.cat(parts))
        for (path, attribute), each in self.attributes.items():
            setattr(self.module(copies, path), attribute, each * len(units))
        for name, times in self.between.items():
            if isinstance(norm := self.module(copies, name), nn.GroupNorm):
                cut_group_norm(norm, channels)
            else:
                parts = [channels + number * self.count for number in range(times)]
                cut_outputs(norm, torch.cat(parts))

    @torch.no_grad()
    def hide(self, copies: Mapping[str, nn.Module], channels: Tensor) -> None:
        """Let copies of the `targets` read no channels but `channels` (indices)."""
        for name in (*self.readers, self.consumer):
            weight = self.module(copies, name).get_parameter("weight")
            off = torch.ones(self.count, dtype=torch.bool, device=weight.device)
            off[channels] = False
            weight[:, off] = 0

    @torch.no_grad()
    def largest(self, copies: Mapping[str, nn.Module], keep: int) -> Tensor:
        """Return the indices of the `keep` channels with the largest weights, in order.

        The size of a unit is the norm of its weights in the consumer, times those in all producers.
        """
        units = self.count // self.unit
        read = weight_parameter(self.module(copies, self.consumer)).movedim(1, 0)
        sizes = read.reshape(units, -1).norm(dim=1)
        for name, made in self.producers.items():
            rows = weight_parameter(self.module(copies, name)).flatten(1).norm(dim=1)
            sizes = sizes * rows.reshape(made.times, units, made.size).norm(dim=(0, 2))
        order = sizes.argsort(descending=True, stable=True)
        return entries_of(order[: keep // self.unit].sort().values, self.unit)


def called_modules(
    graph: fx.Graph, names: Sequence[str], nodes: Collection[str] | None = None
) -> tuple[str, ...]:
    """Modules called in a graph (or by `nodes` of it) that are, or contain, one of `names`."""
    calls = (n for n in graph.nodes if n.op == "call_module")
    called = dict.fromkeys(str(n.target) for n in calls if nodes is None or n.name in nodes)
    return tuple(t for t in called if any(under(n, t) for n in names))


def hidden_channels(traced: TracedSite) -> HiddenChannels | None:
    """Find the most numerous hidden channels of a site whose branch is no chain; None if none."""
    if traced.site.branch is not None:
        return None
    region = traced.site.region
    outermost = Scope(
        traced.block, traced.graph, "", region.entry, region.extras, traced.example(), region.branch
    )
    found = []
    for scope, node in _consumers(outermost, _DEPTH):
        try:
            found.append(_read(scope, node))
        except (NotAChain, NotTraceable, UserCodeError):
            continue
    return max(found, key=lambda hidden: hidden.count, default=None)


def _consumers(scope: Scope, depth: int) -> Iterator[tuple[Scope, fx.Node]]:
    """Yield the linear operators that a branch calls, including those within its modules."""
    called = [n for n in scope.graph.nodes if n.name in scope.branch and n.op == "call_module"]
    for node in called:
        if sum(other.target == node.target for other in called) > 1:
            continue  # called at two places, it cannot be fitted to one input
        if scope.operator(node) is not None:
            yield scope, node
        elif depth and len(list(scope.owner.get_submodule(str(node.target)).children())) > 0:
            try:
                yield from _consumers(scope.inner(node), depth - 1)
            except (NotAChain, NotTraceable, UserCodeError):
                continue


def _read(scope: Scope, consumer: fx.Node) -> HiddenChannels:
    """Read the channels of a consumer's input. Raises NotAChain if they cannot be cut."""
    own = scope.operator(consumer)
    sources = consumer.all_input_nodes
    if own is None or len(sources) != 1 or consumer.args != (sources[0],):
        raise NotAChain(f"`{consumer.target}` does not read one tensor")
    count, x = own.inputs, scope.value(sources[0])
    chain, outermost = _behind(scope, consumer), scope.outermost
    first = chain.steps[0]
    derived = not isinstance(first, LinearStep) or first.derived
    if derived and not isinstance(first, ComposedStep):
        raise NotAChain(f"`{consumer.target}` computes its weight, so that none can be set")
    end = next(n for n in outermost.graph.nodes if n.name == outermost.branch[-1])
    whole, read = outermost.value(end), chain.keep(x)
    if read.shape != whole.shape or not (read - whole).norm() <= _TOLERANCE * whole.norm():
        raise NotAChain(f"what is behind `{consumer.target}` is not what its steps compute")
    axis = 1 if chain.layout_in == "first" else x.ndim - 1
    trace = Backwards(count)
    trace.follow(sources[0], scope, axis - x.ndim)
    trace.check(consumer, scope)
    readers = tuple(own.path(node) for node, own in trace.readers.items())
    if readers and trace.extras:
        raise NotAChain(f"`{consumer.target}` reads channels with factors made of other values")
    name = scope.path(consumer)
    cut = (*trace.producers, *trace.between, *readers, name)
    composed = trace.composed if own.graph is None else {**trace.composed, name: own.graph}
    return HiddenChannels(
        name,
        _enter(scope, sources[0]),
        chain,
        count,
        trace.unit,
        {path: Producer(times, trace.unit) for path, times in trace.producers.items()},
        trace.between,
        trace.extras,
        called_modules(outermost.graph, cut),
        composed=composed,
        readers=readers,
    )


def _behind(scope: Scope, consumer: fx.Node) -> Chain:
    """Read the branch as a chain, from a consumer to the end in the outermost scope."""
    chain: Chain | None = None
    node, here = consumer, scope
    while True:
        start = here.branch.index(node.name) + (node is not consumer)
        if path := here.branch[start:]:
            x = here.value(node.all_input_nodes[0] if node is consumer else node)
            part = read_chain(here.owner, here.graph, path, x, here.prefix)
            if chain is None:
                chain = part
            elif (chain.layout_out, chain.layout, chain.dims) == (
                part.layout_in,
                part.layout,
                part.dims,
            ):
                chain = replace(
                    chain, steps=(*chain.steps, *part.steps), layout_out=part.layout_out
                )
            else:
                raise NotAChain("its layout changes")
        if here.outer is None:
            assert chain is not None  # it has the consumer
            return chain
        here, node = here.outer


def _constant(value: Any) -> Callable[..., Any]:
    return lambda *inputs: value


def _enter(scope: Scope, source: fx.Node) -> Callable[..., Tensor]:
    """The function from the outermost scope's entry and extras to the value of a node."""
    own = extract(scope.owner, scope.graph, scope.entry, source.name, scope.extras)
    if scope.outer is None:
        return own
    outer, _ = scope.outer
    given = [_enter(outer, a) if isinstance(a, fx.Node) else _constant(a) for a in scope.given]
    return lambda *inputs: own(*(of(*inputs) for of in given))
