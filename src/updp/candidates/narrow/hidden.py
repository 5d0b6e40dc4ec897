"""Hidden channels of a branch that is no chain: those that its last operator reads.

A gated feed-forward part multiplies two layers' outputs, a block of a diffusion network adds an
embedding of the time to its own: each value of the last operator's input is made of one channel of
several operators. Those are found from that input backwards, through whatever acts on each channel
alone.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import lcm
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from updp.blocks import Chain, Site
from updp.blocks.modules import UserCodeError, call_user_code
from updp.blocks.reading.chain import read_chain
from updp.blocks.reading.cursor import NotAChain
from updp.blocks.reading.linear import CONVOLUTIONS
from updp.blocks.reading.probe import kind_of
from updp.blocks.reading.steps import Call
from updp.blocks.surgery import extract
from updp.candidates.narrow.slicing import cut_group_norm, cut_inputs, cut_outputs, has_state

_JOINS = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.imul),
    *(torch.add, torch.sub, torch.mul, torch.div),
    *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_"),
}
_CHUNKS = {torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split"}


@dataclass(frozen=True)
class HiddenChannels:
    """Hidden channels, by modules and nodes of the block's graph.

    consumer:   the operator that reads them
    source:     name of the node that it reads
    chain:      the branch from the consumer on
    count:      number of channels
    unit:       so many adjoin, and stay or go together, as the groups of a GroupNorm do
    producers:  operators that make them, each with how many times it makes all of them in a row
    between:    modules with state that act on each channel
    extras:     nodes outside of the region with one value for each channel, each with its axis
    """

    consumer: str
    source: str
    chain: Chain
    count: int
    unit: int
    producers: Mapping[str, int]
    between: tuple[str, ...]
    extras: Mapping[str, int]

    @property
    def targets(self) -> tuple[str, ...]:
        """The modules that become narrower."""
        return (*self.producers, *self.between, self.consumer)

    @torch.no_grad()
    def cut(self, modules: Mapping[str, nn.Module], channels: Tensor) -> None:
        """Remove all channels but `channels` (indices) from copies of the modules."""
        cut_inputs(modules[self.consumer], channels)
        for name, times in self.producers.items():
            parts = [channels + number * self.count for number in range(times)]
            cut_outputs(modules[name], torch.cat(parts))
        for name in self.between:
            if isinstance(norm := modules[name], nn.GroupNorm):
                cut_group_norm(norm, channels)
            else:
                cut_outputs(norm, channels)

    @torch.no_grad()
    def largest(self, modules: Mapping[str, nn.Module], keep: int) -> Tensor:
        """Return the indices of the `keep` channels of the largest weights, in order.

        The norm of a channel's weights in the consumer, times those in all producers.
        """
        sizes = _weight(modules[self.consumer]).movedim(1, 0).flatten(1).norm(dim=1)
        for name, times in self.producers.items():
            rows = _weight(modules[name]).flatten(1).norm(dim=1).reshape(times, -1)
            sizes = sizes * rows.norm(dim=0)
        order = sizes.reshape(-1, self.unit).sum(1).argsort(descending=True, stable=True)
        units = order[: keep // self.unit].sort().values
        channels: Tensor = units[:, None] * self.unit + torch.arange(self.unit, device=units.device)
        return channels.flatten()


def hidden_channels(site: Site, block: nn.Module, graph: fx.Graph) -> HiddenChannels | None:
    """Find the hidden channels of a site whose branch is no chain: the most, if there are any."""
    if site.branch is not None:
        return None
    nodes = {node.name: node for node in graph.nodes}
    found = []
    for name in site.region.branch:
        node = nodes[name]
        if node.op == "call_module" and _operator(block, node) is not None:
            try:
                found.append(_read(site, block, graph, node))
            except (NotAChain, UserCodeError):
                continue
    return max(found, key=lambda hidden: hidden.count, default=None)


def _read(site: Site, block: nn.Module, graph: fx.Graph, consumer: fx.Node) -> HiddenChannels:
    """Read the channels that a consumer is given. Raises NotAChain: they cannot be cut."""
    module = _operator(block, consumer)
    source = consumer.args[0] if consumer.args else None
    if module is None or not isinstance(source, fx.Node) or len(consumer.all_input_nodes) != 1:
        raise NotAChain(f"`{consumer.target}` does not read one tensor")
    region, count = site.region, _weight(module).shape[1]
    enter = extract(block, graph, region.entry, source.name, region.extras)
    x = call_user_code(enter, *site.example(block))
    behind = region.branch[region.branch.index(consumer.name) :]
    chain = read_chain(block, graph, behind, x)
    trace = _Trace(site, block, count, 1 if chain.layout_in == "first" else x.ndim - 1, x.ndim)
    trace.follow(source)
    trace.check(consumer)
    return HiddenChannels(
        str(consumer.target),
        source.name,
        chain,
        count,
        trace.unit,
        trace.producers,
        tuple(trace.between),
        trace.extras,
    )


@dataclass
class _Trace:
    """A walk from the consumer's input backwards, to the operators that make the channels."""

    site: Site
    block: nn.Module
    count: int
    axis: int  # of the channels
    ndim: int
    unit: int = 1
    producers: dict[str, int] = field(default_factory=dict)
    between: dict[str, None] = field(default_factory=dict)
    extras: dict[str, int] = field(default_factory=dict)
    seen: dict[fx.Node, None] = field(default_factory=dict)

    def follow(self, node: fx.Node) -> None:
        """Go on from a node to what it is made of. Raises NotAChain."""
        if node in self.seen:
            return
        if node.name in self.site.region.extras:
            self._extra(node)
        elif node.name not in self.site.region.branch:
            raise NotAChain(f"`{node.name}` is no value of the branch")
        elif node.target is operator.getitem and _is_chunk(node.args[0]):
            self.seen[node] = self.seen[node.args[0]] = None  # type: ignore[index]
            self._produced(node.args[0].all_input_nodes[0])  # type: ignore[union-attr]
        elif node.op == "call_module" and _operator(self.block, node) is not None:
            self._produced(node)
        elif node.op == "call_module":
            self.seen[node] = None
            self._module(node)
            self.follow(node.all_input_nodes[0])
        elif node.target in _JOINS and len(node.all_input_nodes) == 2:
            self.seen[node] = None
            for parent in node.all_input_nodes:
                self.follow(parent)
        else:
            self.seen[node] = None
            sources = node.all_input_nodes
            if len(sources) != 1 or kind_of(Call.of(node, sources[0])) == "other":
                raise NotAChain(f"`{node.name}` does not act on each channel alone")
            self.follow(sources[0])

    def check(self, consumer: fx.Node) -> None:
        """Raise NotAChain where something else reads the channels, too, or nothing makes them."""
        if not self.producers:
            raise NotAChain("no operator of the branch makes these channels")
        inside = {*self.seen, consumer}
        for node in self.seen:
            outside = {*node.users} - inside
            if node.name in self.extras:  # outside of the region it may be read by anything
                outside = {user for user in outside if user.name in self.site.region.inside}
            if outside:
                raise NotAChain(f"`{node.name}` is read elsewhere, too")

    def _produced(self, node: fx.Node) -> None:
        module = _operator(self.block, node) if node.op == "call_module" else None
        if module is None or node.name not in self.site.region.branch:
            raise NotAChain(f"`{node.name}` is no operator whose outputs can be cut")
        times, rest = divmod(_weight(module).shape[0], self.count)
        chunks = [user for user in node.users if _is_chunk(user)]
        if rest or not times or (times > 1) != bool(chunks):
            raise NotAChain(f"`{node.name}` makes other channels")
        self.seen[node] = None
        self.producers[str(node.target)] = times

    def _module(self, node: fx.Node) -> None:
        """Note a module that acts on each channel alone. Raises NotAChain for any other."""
        module, name = self.block.get_submodule(str(node.target)), str(node.target)
        if len(node.all_input_nodes) != 1 or node.kwargs:
            raise NotAChain(f"`{name}` takes several inputs")
        if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            self.unit = lcm(self.unit, self.count // module.num_groups)
        elif isinstance(module, CONVOLUTIONS):
            if not module.groups == module.in_channels == module.out_channels:
                raise NotAChain(f"`{name}` mixes channels")
        elif isinstance(module, _BatchNorm):
            if module.running_var is None:
                raise NotAChain(f"`{name}` has no running statistics")
        elif not isinstance(module, nn.PReLU) and (has_state(module) or kind_of(module) == "other"):
            raise NotAChain(f"`{name}` does not act on each channel alone")
        if isinstance(module, nn.GroupNorm) or has_state(module):
            self.between[name] = None

    def _extra(self, node: fx.Node) -> None:
        """Note a value from outside, with one entry for each channel or the same for all."""
        self.seen[node] = None
        value = self.site.extras[self.site.region.extras.index(node.name)]
        if not isinstance(value, Tensor) or value.numel() == 1:
            return
        axis = self.axis - self.ndim + value.ndim  # counted from the last, as tensors broadcast
        if axis < 0 or value.shape[axis] == 1:
            return
        if value.shape[axis] != self.count:
            raise NotAChain(f"`{node.name}` has no entry for each channel")
        self.extras[node.name] = axis


def _operator(block: nn.Module, node: fx.Node) -> nn.Module | None:
    """The linear operator that a node calls, if its rows and columns can be cut."""
    module: Any = block.get_submodule(str(node.target))
    if not isinstance(module, (*CONVOLUTIONS, nn.Linear)) or getattr(module, "groups", 1) > 1:
        return None
    own = "weight" in dict(module.named_parameters(recurse=False))
    once = sum(n.op == "call_module" and n.target == node.target for n in node.graph.nodes) == 1
    return module if own and once and not module._forward_pre_hooks else None


def _is_chunk(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in _CHUNKS and len(node.all_input_nodes) == 1


def _weight(module: nn.Module) -> Tensor:
    return module.get_parameter("weight")
