"""A branch, or a module that it calls, with its traced graph and real inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from updp.blocks.modules import UserCodeError, call_user_code, is_composite
from updp.blocks.reading.composed import read_composed
from updp.blocks.reading.cursor import NotAChain
from updp.blocks.reading.linear import CONVOLUTIONS
from updp.blocks.surgery import extract
from updp.blocks.tracing.any_size import trace_inside
from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.interpret import NotTraceable
from updp.blocks.tracing.region import whole_region


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

    @property
    def callers(self) -> tuple[fx.Node, ...]:
        """The nodes of outer scopes that call this one, from the inside."""
        return () if self.outer is None else (self.outer[1], *self.outer[0].callers)

    def path(self, node: fx.Node) -> str:
        """Path in the block of what a node calls."""
        return f"{self.prefix}{node.target}"

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
            graph = trace_inside(module, Arguments((self.any_value(node.args[0]),)))
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
        graph = trace_inside(module, Arguments(tuple(values)))
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


def weight_parameter(module: nn.Module) -> Tensor:
    """The weight of a linear operator, (O, I, ...)."""
    return module.get_parameter("weight")
