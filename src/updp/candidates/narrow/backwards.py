"""A walk backwards through a branch, from a tensor to the operators that make its channels."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from math import lcm
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from updp.blocks.modules import UserCodeError, call_user_code, is_composite
from updp.blocks.reading.composed import read_composed
from updp.blocks.reading.cursor import NotAChain
from updp.blocks.reading.linear import CONVOLUTIONS
from updp.blocks.reading.probe import kind_of
from updp.blocks.reading.steps import Call
from updp.blocks.surgery import extract
from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.interpret import NotTraceable
from updp.blocks.tracing.region import is_size, whole_region
from updp.blocks.tracing.trace import trace_alone
from updp.candidates.narrow.slicing import has_state

_JOINS = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.imul),
    *(torch.add, torch.sub, torch.mul, torch.div),
    *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_"),
}
_CHUNKS = {torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split"}


@dataclass(frozen=True)
class CutOperator:
    """A linear operator whose channels can be cut; with a graph if it combines layers."""

    outputs: int
    inputs: int
    graph: fx.Graph | None = None


@dataclass(frozen=True)
class Scope:
    """A branch, or a module that the branch calls: its graph, with real inputs.

    owner:   the module that was traced
    prefix:  path of `owner` in the block, with a dot at the end
    entry:   node whose value enters the branch
    extras:  other nodes outside of the branch that it reads
    inputs:  values of the entry and the extras
    branch:  names of the nodes, in order
    outer:   the scope that calls the module, and the node that does
    given:   what that node gives for the entry and the extras: nodes of the outer graph, constants
    """

    owner: nn.Module
    graph: fx.Graph
    prefix: str
    entry: str
    extras: tuple[str, ...]
    inputs: tuple[Any, ...]
    branch: tuple[str, ...]
    outer: tuple[Scope, fx.Node] | None = None
    given: tuple[Any, ...] = ()

    @property
    def outermost(self) -> Scope:
        """The scope of the branch itself."""
        return self if self.outer is None else self.outer[0].outermost

    def value(self, node: fx.Node) -> Tensor:
        """Compute the value of a node. Raises NotAChain: it is no tensor."""
        if not isinstance(value := self.any_value(node), Tensor):
            raise NotAChain(f"`{node.name}` is no tensor")
        return value

    def any_value(self, node: Any) -> Any:
        """Compute the value of a node; anything else is a constant."""
        if not isinstance(node, fx.Node):
            return node
        if node.name == self.entry:
            return self.inputs[0]
        part = extract(self.owner, self.graph, self.entry, node.name, self.extras)
        with torch.no_grad():
            return call_user_code(part, *self.inputs)

    def tensors(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that a node reads, but for sizes and other values that are no tensors."""
        return [n for n in node.all_input_nodes if isinstance(self.any_value(n), Tensor)]

    def operator(self, node: fx.Node) -> CutOperator | None:
        """The linear operator that a node calls, if its rows and columns can be cut; else None."""
        module = self.owner.get_submodule(str(node.target))
        calls = [n for n in node.graph.nodes if n.op == "call_module" and n.target == node.target]
        if len(calls) > 1 or module._forward_pre_hooks:
            return None
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            own = "weight" in dict(module.named_parameters(recurse=False))
            is_dense = own and getattr(module, "groups", 1) == 1
            return CutOperator(*weight_parameter(module).shape[:2]) if is_dense else None
        if not is_composite(module) or len(node.args) != 1 or node.kwargs:
            return None
        try:
            graph = trace_alone(module, Arguments((self.any_value(node.args[0]),)))
        except (NotTraceable, UserCodeError):
            return None
        step = read_composed("", module, graph)
        return None if step is None else CutOperator(step.out_channels, step.in_channels, graph)

    def inner(self, node: fx.Node) -> Scope:
        """The scope of a module that a node calls with one tensor, and maybe sizes.

        Raises NotAChain: it takes more, or is not a path from there to one output.
        """
        values = [self.any_value(argument) for argument in node.args]
        if node.kwargs or [i for i, v in enumerate(values) if isinstance(v, Tensor)] != [0]:
            raise NotAChain(f"`{node.target}` takes more than a tensor and sizes")
        module = self.owner.get_submodule(str(node.target))
        graph = trace_alone(module, Arguments(tuple(values)))
        if (region := whole_region(graph, sizes=True)) is None:
            raise NotAChain(f"`{node.target}` is not a path from one input to one output")
        names = [n.name for n in graph.nodes if n.op == "placeholder"]
        of = dict(zip(names, zip(values, node.args, strict=False), strict=False))
        if not of.keys() >= {*region.extras}:
            raise NotAChain(f"`{node.target}` reads an argument that it is not given")
        inputs, given = zip(*(of[name] for name in (region.entry, *region.extras)), strict=True)
        prefix = f"{self.prefix}{node.target}."
        return Scope(
            module,
            graph,
            prefix,
            region.entry,
            region.extras,
            inputs,
            region.branch,
            (self, node),
            given,
        )


@dataclass
class Backwards:
    """A walk backwards from a tensor, with its findings.

    count:              number of the channels
    unit:               so many channels adjoin, and stay or go together
    producers:          operators, each with how many times it makes all channels in a row
    between:            modules with state that act on each channel
    extras:             nodes outside of the branch with a value per channel, with the axis of that
    composed:           producers that combine layers, with their graphs
    """

    count: int
    unit: int = 1
    producers: dict[str, int] = field(default_factory=dict)
    between: dict[str, None] = field(default_factory=dict)
    extras: dict[str, int] = field(default_factory=dict)
    composed: dict[str, fx.Graph] = field(default_factory=dict)
    seen: dict[fx.Node, Scope] = field(default_factory=dict)

    def follow(self, node: fx.Node, scope: Scope, axis: int) -> None:
        """Go on from a node to what it is made of. Raises NotAChain.

        `axis` is that of the channels, counted from the last, as tensors broadcast: -1 is the last.
        """
        if node in self.seen:
            return
        if node.name in scope.extras:
            self._extra(node, scope, axis)
        elif node.name == scope.entry and scope.outer is not None:
            self.seen[node] = scope
            self.follow(scope.given[0], scope.outer[0], axis)
        elif node.name not in scope.branch:
            raise NotAChain(f"`{node.name}` is no value of the branch")
        elif node.target is operator.getitem and _is_chunk(node.args[0]):
            self.seen[node] = self.seen[node.args[0]] = scope  # type: ignore[index]
            self._parts_of(node.args[0].all_input_nodes[0], scope)  # type: ignore[union-attr]
        elif node.target is F.glu:  # GLU multiplies the two halves of its input
            self.seen[node] = scope
            self._parts_of(node.all_input_nodes[0], scope)
        elif node.op == "call_module" and scope.operator(node) is not None:
            self._produced(node, scope)
        elif node.op == "call_module":
            self.seen[node] = scope
            self._module(node, scope, axis)
        elif node.target in _JOINS and len(node.all_input_nodes) == 2:
            self.seen[node] = scope
            for parent in node.all_input_nodes:
                self.follow(parent, scope, axis)
        else:
            self.seen[node] = scope
            sources = scope.tensors(node)
            if len(sources) != 1:
                raise NotAChain(f"`{node.name}` does not act on each channel alone")
            alone = node.all_input_nodes == sources
            if not alone or kind_of(Call.of(node, sources[0])) == "other":
                axis = self._axis_before(node, sources[0], scope, axis)
            self.follow(sources[0], scope, axis)

    def check(self, consumer: fx.Node) -> None:
        """Raise NotAChain if other nodes read the channels, too, or if no operator makes them."""
        if not self.producers:
            raise NotAChain("no operator of the branch makes these channels")
        for node, scope in self.seen.items():
            for user in node.users:
                # Nodes outside of the branch may read any value.
                if user in self.seen or user is consumer or user.name not in scope.branch:
                    continue
                if is_size(user):
                    continue
                raise NotAChain(f"`{node.name}` is read elsewhere, too")

    def _parts_of(self, node: fx.Node, scope: Scope) -> None:
        """Find the operator whose output is split into parts, perhaps inside another module."""
        while node.name == scope.entry and scope.outer is not None:
            self.seen[node] = scope
            node, (scope, _) = scope.given[0], scope.outer
        self._produced(node, scope, in_parts=True)

    def _produced(self, node: fx.Node, scope: Scope, in_parts: bool = False) -> None:
        found = scope.operator(node) if node.op == "call_module" else None
        if found is None or node.name not in scope.branch:
            raise NotAChain(f"`{node.name}` is no operator whose outputs can be cut")
        times, rest = divmod(found.outputs, self.count)
        if rest or not times or (times > 1) != in_parts:
            raise NotAChain(f"`{node.name}` makes other channels")
        self.seen[node] = scope
        path = f"{scope.prefix}{node.target}"
        self.producers[path] = times
        if found.graph is not None:
            self.composed[path] = found.graph

    def _axis_before(self, node: fx.Node, source: fx.Node, scope: Scope, axis: int) -> int:
        """The axis of the channels in a tensor that a node reshapes. Raises NotAChain.

        Each channel is filled with its number, which has to arrive where the channels are.
        """
        x, y = scope.value(source), scope.value(node)
        others = [n for n in node.all_input_nodes if n is not source]
        names, sizes = [n.name for n in others], [scope.any_value(n) for n in others]
        alone = extract(scope.owner, scope.graph, source.name, node.name, names)
        if y.ndim < -axis or y.shape[axis] != self.count:
            raise NotAChain(f"`{node.name}` does not act on each channel alone")
        numbers = torch.arange(self.count, dtype=x.dtype, device=x.device)
        for before in range(-x.ndim, 0):
            if x.shape[before] != self.count:
                continue
            filled = numbers.reshape(-1, *[1] * (-before - 1)).expand(x.shape).contiguous()
            moved = call_user_code(alone, filled, *sizes)
            wanted = numbers.reshape(-1, *[1] * (-axis - 1)).expand(y.shape)
            if isinstance(moved, Tensor) and torch.equal(moved, wanted):
                return before
        raise NotAChain(f"`{node.name}` does not act on each channel alone")

    def _module(self, node: fx.Node, scope: Scope, axis: int) -> None:
        """Go on through a module that acts on each channel alone, or that is the user's own."""
        module = scope.owner.get_submodule(str(node.target))
        if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            self.unit = lcm(self.unit, self.count // module.num_groups)
        elif isinstance(module, CONVOLUTIONS):
            if not module.groups == module.in_channels == module.out_channels:
                raise NotAChain(f"`{node.target}` mixes channels")
        elif isinstance(module, _BatchNorm):
            if module.running_var is None:
                raise NotAChain(f"`{node.target}` has no running statistics")
        elif not isinstance(module, nn.PReLU) and (has_state(module) or kind_of(module) == "other"):
            inner = scope.inner(node)
            (output,) = (n for n in inner.graph.nodes if n.op == "output")
            self.follow(output.all_input_nodes[0], inner, axis)
            return
        if len(node.all_input_nodes) != 1 or node.kwargs:
            raise NotAChain(f"`{node.target}` takes several inputs")
        if isinstance(module, nn.GroupNorm) or has_state(module):
            self.between[f"{scope.prefix}{node.target}"] = None
        self.follow(node.all_input_nodes[0], scope, axis)

    def _extra(self, node: fx.Node, scope: Scope, axis: int) -> None:
        """Note a value from outside, with one entry for each channel or the same for all."""
        self.seen[node] = scope
        value = scope.inputs[1 + scope.extras.index(node.name)]
        if not isinstance(value, Tensor) or value.numel() == 1:
            return
        axis += value.ndim
        if axis < 0 or value.shape[axis] == 1:
            return
        if value.shape[axis] != self.count:
            raise NotAChain(f"`{node.name}` has no entry for each channel")
        self.extras[node.name] = axis


def weight_parameter(module: nn.Module) -> Tensor:
    """The weight of a linear operator, (O, I, ...)."""
    return module.get_parameter("weight")


def _is_chunk(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in _CHUNKS and len(node.all_input_nodes) == 1
