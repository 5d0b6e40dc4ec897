"""A walk backwards through a branch, from a tensor to the operators that make its channels."""

from __future__ import annotations

import operator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from updp.blocks.modules import call_user_code
from updp.blocks.reading.cursor import NotAChain
from updp.blocks.reading.linear import CONVOLUTIONS
from updp.blocks.reading.probe import kind_of
from updp.blocks.reading.steps import Call
from updp.blocks.surgery import extract
from updp.blocks.tracing.interpret import NotTraceable
from updp.blocks.tracing.region import is_size
from updp.candidates.narrow.scope import CutOperator, Scope
from updp.candidates.narrow.slicing import has_state

_JOINS = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.imul),
    *(torch.add, torch.sub, torch.mul, torch.div),
    *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_"),
}
_CHUNKS = {torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split"}


@dataclass
class Backwards:
    """A walk backwards from a tensor, with its findings.

    count:              number of the channels
    unit:               so many channels adjoin, and stay or go together
    producers:          operators, each with how many times it makes all channels in a row
    between:            modules with state that act on each channel, likewise
    extras:             nodes outside of the branch with a value per channel, with the axis of that
    readers:            operators that read the channels to make factors for them, with scopes
    composed:           operators that combine layers, with their graphs
    seen:               all nodes of the walk, with scope and times
    makers:             those that call a module which makes the channels of its own input
    """

    count: int
    unit: int = 1
    producers: dict[str, int] = field(default_factory=dict)
    between: dict[str, int] = field(default_factory=dict)
    extras: dict[str, int] = field(default_factory=dict)
    readers: dict[fx.Node, Scope] = field(default_factory=dict)
    composed: dict[str, fx.Graph] = field(default_factory=dict)
    seen: dict[fx.Node, tuple[Scope, int]] = field(default_factory=dict)
    makers: set[fx.Node] = field(default_factory=set)

    def follow(self, node: fx.Node, scope: Scope, axis: int, times: int = 1) -> None:
        """Go on from a node to what it is made of. Raises NotAChain.

        `axis` is that of the channels, counted from the last, as tensors broadcast: -1 is the last.
        It has all channels `times` times in a row.
        """
        if node in self.seen:
            if self.seen[node][1] != times:
                raise NotAChain(f"`{node.name}` is read whole and in parts")
            return
        if node.name not in (*scope.branch, *scope.extras) and node.name != scope.entry:
            raise NotAChain(f"`{node.name}` is no value of the branch")
        self.seen[node] = scope, times
        if node.name in scope.extras:
            self._extra(node, scope, axis, times)
        elif node.name == scope.entry:
            if scope.outer is None:
                raise NotAChain(f"`{node.name}` is no value of the branch")
            self.makers.discard(scope.outer[1])
            self.follow(scope.given[0], scope.outer[0], axis, times)
        elif node.target is operator.getitem and _is_chunk(node.args[0]):
            self.seen[node.args[0]] = scope, times  # type: ignore[index]
            self._parts(node.args[0].all_input_nodes[0], scope, axis, times)  # type: ignore[union-attr]
        elif node.target is F.glu:  # GLU multiplies the two halves of its input
            self._parts(node.all_input_nodes[0], scope, axis, times)
        elif node.op == "call_module" and (found := scope.operator(node)) is not None:
            self._produced(node, scope, found, times)
        elif node.op == "call_module":
            self._module(node, scope, axis, times)
        elif node.target in _JOINS and len(node.all_input_nodes) == 2:
            for parent in node.all_input_nodes:
                self.follow(parent, scope, axis, times)
        else:
            sources = scope.tensors(node)
            if len(sources) != 1:
                raise NotAChain(f"`{node.name}` does not act on each channel alone")
            alone = node.all_input_nodes == sources
            if not alone or kind_of(Call.of(node, sources[0])) == "other":
                axis = self._axis_before(node, sources[0], scope, axis, self.count * times)
            self.follow(sources[0], scope, axis, times)

    def check(self, consumer: fx.Node, scope: Scope) -> None:
        """Raise NotAChain if other nodes read the channels, too, or if no operator makes them.

        `scope` is the consumer's. Factors for the channels may be computed from all of them, as
        squeeze-and-excitation does: the operators that read them for this lose their columns.
        """
        if not self.producers:
            raise NotAChain("no operator of the branch makes these channels")
        if self._read_elsewhere(consumer, scope) is not None:
            self._find_readers()
        if (node := self._read_elsewhere(consumer, scope)) is not None:
            raise NotAChain(f"`{node.name}` is read elsewhere, too")

    def _read_elsewhere(self, consumer: fx.Node, scope: Scope) -> fx.Node | None:
        """The first node of the channels that is read by one which is not known to do so."""
        readers: set[fx.Node] = set()
        for node, own in ((consumer, scope), *self.readers.items()):
            readers |= {node, *own.callers}
        for node, (scope, _) in self.seen.items():
            for user in node.users:
                # Nodes outside of the branch may read any value.
                known = user in readers or (user in self.seen and user not in self.makers)
                if known or user.name not in scope.branch:
                    continue
                if not is_size(user):
                    return node
        return None

    def _find_readers(self) -> None:
        """Go back from each producer to operators that read the channels."""
        known = [(node, scope) for node, (scope, _) in self.seen.items()]
        pending = [(node, scope) for node, scope in known if scope.path(node) in self.producers]
        passed: set[fx.Node] = set()
        while pending:
            node, scope = pending.pop()
            if node in passed:
                continue
            passed.add(node)
            if node.op == "call_module" and self._reads(node, scope):
                continue
            if node.name == scope.entry:
                if scope.outer is not None:
                    pending.append((scope.given[0], scope.outer[0]))
                continue
            parents = node.all_input_nodes
            if node.op == "call_module" and scope.operator(node) is None:
                with suppress(NotAChain, NotTraceable):
                    scope = scope.inner(node)
                    parents = [n for n in scope.graph.nodes if n.op == "output"]
            before = (n for n in parents if n not in self.seen)
            pending += [(n, scope) for n in before if n.name not in scope.extras]

    def _reads(self, node: fx.Node, scope: Scope) -> bool:
        """Whether an operator reads these channels, and no others; if so, note it."""
        found = scope.operator(node)
        sources = node.all_input_nodes
        if found is None or found.inputs != self.count or node.args != (*sources[:1],):
            return False
        source = sources[0]
        trial = replace(
            self,
            producers={**self.producers},
            between={**self.between},
            extras={**self.extras},
            composed={**self.composed},
            seen={**self.seen},
            makers={*self.makers},
        )
        try:
            module = scope.owner.get_submodule(str(node.target))
            first = isinstance(module, CONVOLUTIONS)
            trial.follow(source, scope, 1 - scope.value(source).ndim if first else -1)
        except (NotAChain, NotTraceable):
            return False
        if (trial.producers, trial.extras) != (self.producers, self.extras):
            return False
        self.unit, self.between = trial.unit, trial.between
        self.seen, self.makers = trial.seen, trial.makers
        self.readers[node] = scope
        if found.graph is not None:
            self.composed[scope.path(node)] = found.graph
        return True

    def _parts(self, node: fx.Node, scope: Scope, axis: int, times: int) -> None:
        """Go on from parts of equal size to the whole, of which a trial shows whether it is so."""
        value = scope.value(node)
        size = value.shape[axis] if value.ndim >= -axis else 0
        if times > 1 or size <= self.count or size % self.count:
            raise NotAChain(f"the parts of `{node.name}` are other channels")
        self.follow(node, scope, axis, size // self.count)

    def _produced(self, node: fx.Node, scope: Scope, found: CutOperator, times: int) -> None:
        if found.outputs != self.count * times:
            raise NotAChain(f"`{node.name}` makes other channels")
        self.producers[scope.path(node)] = times
        if found.graph is not None:
            self.composed[scope.path(node)] = found.graph

    @staticmethod
    def _axis_before(node: fx.Node, source: fx.Node, scope: Scope, axis: int, count: int) -> int:
        """The axis of the `count` channels in a tensor that a node reshapes. Raises NotAChain.

        Each channel is filled with its number, which has to arrive where the channels are.
        """
        x, y = scope.value(source), scope.value(node)
        if not x.is_floating_point():  # a mask, say, which holds no numbers of channels
            raise NotAChain(f"`{node.name}` reads values of the type {x.dtype}")
        others = [n for n in node.all_input_nodes if n is not source]
        names, sizes = [n.name for n in others], [scope.any_value(n) for n in others]
        alone = extract(scope.owner, scope.graph, source.name, node.name, names)
        if y.ndim < -axis or y.shape[axis] != count:
            raise NotAChain(f"`{node.name}` does not act on each channel alone")
        numbers = torch.arange(count, dtype=x.dtype, device=x.device)
        for before in range(-x.ndim, 0):
            if x.shape[before] != count:
                continue
            filled = numbers.reshape(-1, *[1] * (-before - 1)).expand(x.shape).contiguous()
            moved = call_user_code(alone, filled, *sizes)
            wanted = numbers.reshape(-1, *[1] * (-axis - 1)).expand(y.shape)
            if isinstance(moved, Tensor) and torch.equal(moved, wanted):
                return before
        raise NotAChain(f"`{node.name}` does not act on each channel alone")

    def _module(self, node: fx.Node, scope: Scope, axis: int, times: int) -> None:
        """Go on through a module that acts on each channel alone, or that is the user's own."""
        module = scope.owner.get_submodule(str(node.target))
        if isinstance(module, nn.GroupNorm) and times > 1:
            raise NotAChain(f"`{node.target}` mixes the parts")
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
            self.makers.add(node)
            (output,) = (n for n in inner.graph.nodes if n.op == "output")
            self.follow(output.all_input_nodes[0], inner, axis, times)
            return
        if len(node.all_input_nodes) != 1 or node.kwargs:
            raise NotAChain(f"`{node.target}` takes several inputs")
        if isinstance(module, nn.GroupNorm) or has_state(module):
            self.between[scope.path(node)] = times
        self.follow(node.all_input_nodes[0], scope, axis, times)

    def _extra(self, node: fx.Node, scope: Scope, axis: int, times: int) -> None:
        """Note a value from outside, with one entry for each channel or the same for all."""
        value = scope.inputs[1 + scope.extras.index(node.name)]
        if not isinstance(value, Tensor) or value.numel() == 1:
            return
        axis += value.ndim
        if axis < 0 or value.shape[axis] == 1:
            return
        if times > 1 or value.shape[axis] != self.count:
            raise NotAChain(f"`{node.name}` has no entry for each channel")
        self.extras[node.name] = axis


def _is_chunk(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in _CHUNKS and len(node.all_input_nodes) == 1
