"""Values of a branch's nodes on the site's example."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from updp.blocks import TracedSite
from updp.blocks.modules import call_user_code, evaluating
from updp.blocks.tracing.calls import cloned


class Values:
    """The values of a branch's nodes by name, each computed once."""

    def __init__(self, traced: TracedSite) -> None:
        region = traced.site.region
        self._nodes, self._given = {n.name: n for n in traced.graph.nodes}, {*region.extras}
        self._part = traced.between
        self._names = (region.entry, *region.branch)
        self._inputs = traced.example()
        self._known: dict[str, Any] = {region.entry: self._inputs[0]}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Any:
        if name not in self._known:
            self._known[name] = self.call(self._names[0], name, self._inputs[0])
        return self._known[name]

    def call(self, start: str, end: str, x: Tensor) -> Any:
        """The value of node `end`, if `start` has the value `x`."""
        part = self._part(start, end)
        with evaluating(part):
            return call_user_code(part, *map(cloned, (x, *self._inputs[1:])))

    def reads_only(self, start: str, end: str) -> bool:
        """Whether node `end` depends on nothing but node `start` and the region's extras."""
        known, pending = {start, *self._given}, [self._nodes[end]]
        while pending:
            node = pending.pop()
            if node.op == "placeholder" and node.name not in known:
                return False
            if node.name not in known:
                known.add(node.name)
                pending += node.all_input_nodes
        return True

    @property
    def entry(self) -> str:
        """The node at the region's entry."""
        return self._names[0]

    @property
    def images(self) -> int:
        """Number of images in the example."""
        return len(self._inputs[0])

    @property
    def last(self) -> str:
        """The last node of the branch."""
        return self._names[-1]

    def find(self, wanted: Tensor, before: str = "") -> str:
        """First node with the value `wanted`, or last such node before another; empty if none."""
        names = self._names[self._names.index(before) - 1 :: -1] if before else self._names[1:]
        return next((name for name in names if equal(self[name], wanted)), "")


def equal(value: Any, wanted: Tensor) -> bool:
    """Whether `value` is a tensor equal to `wanted`, bit by bit."""
    return isinstance(value, Tensor) and value.shape == wanted.shape and value.equal(wanted)
