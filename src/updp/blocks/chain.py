"""Read a path through a block's graph as a chain of steps.

Nothing is known by the name of a model: a module is a convolution, a linear layer, a norm, or it is
traced alone and read in turn, or it is probed. What is read is checked against the block on real
inputs afterwards (`find`), so reading may be bold.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from updp.blocks.region import data_nodes, whole_region
from updp.blocks.steps import ActStep, Call, Chain, LinearStep, NormStep, ScaleStep, Step
from updp.blocks.trace import NotTraceable, trace_alone

_MULS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_PERMUTES = {torch.permute, "permute"}
_SAME = {"contiguous", "clone"}
_RESHAPES = {"reshape", "view", "unsqueeze", torch.reshape, torch.unsqueeze}
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class NotAChain(Exception):
    """A path that is no chain of linear operators, norms and activations; the text says why."""


def read_chain(block: nn.Module, graph: fx.Graph, path: Sequence[str], ndim: int) -> Chain:
    """Read the nodes `path` of `graph` (in order) as a chain on a tensor of `ndim` dimensions.

    Raises:
        NotAChain: something on the path is neither linear, a norm, nor an activation.
    """
    if ndim not in (2, 3, 4):
        raise NotAChain(f"its tensor has {ndim} dimensions, not 2, 3 or 4")
    reader = _Reader(ndim)
    reader.read(block, graph, path, prefix="")
    layout_in = reader.start or "first"
    convolves = any(isinstance(s, LinearStep) and s.spatial for s in reader.steps)
    steps = tuple(
        replace(s, layout=s.layout or layout_in) if isinstance(s, NormStep) else s
        for s in reader.steps
    )
    return Chain(steps, "first" if convolves else layout_in, layout_in, reader.layout or layout_in)


class _Reader:
    """Collects steps and follows where the channels are."""

    def __init__(self, ndim: int) -> None:
        self.start = self.layout = "last" if ndim < 4 else None
        self.flat = ndim == 2  # (N, C): the channels are both first and last
        self.steps: list[Step] = []

    def read(self, owner: nn.Module, graph: fx.Graph, path: Sequence[str], prefix: str) -> None:
        nodes = {n.name: n for n in graph.nodes}
        data = data_nodes(graph)
        previous: fx.Node | None = None
        for name in path:
            node = nodes[name]
            inputs = [p for p in node.all_input_nodes if p in data]
            if len(inputs) != 1 or (previous is not None and inputs[0] is not previous):
                label = node.target if node.op == "call_module" else name
                raise NotAChain(f"`{prefix}{label}` takes several inputs")
            self._node(owner, node, inputs[0], prefix)
            previous = node

    def _node(self, owner: nn.Module, node: fx.Node, source: fx.Node, prefix: str) -> None:
        name = f"{prefix}{node.target if node.op == 'call_module' else node.name}"
        if node.op == "call_module":
            self._module(name, owner.get_submodule(str(node.target)))
        elif node.target in _PERMUTES:
            self._permute(name, node)
        elif node.target is F.batch_norm and isinstance(owner, nn.modules.batchnorm._BatchNorm):
            self._norm(prefix.rstrip("."), owner, owner.num_features)
        elif node.target in _MULS and (gamma := _parameter(owner, node, source)) is not None:
            self.steps.append(ScaleStep(name, gamma))
        elif node.target not in _SAME:
            self._probe(name, Call.of(node, source))

    def _module(self, name: str, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward:
            if module.padding_mode != "zeros":
                raise NotAChain(f"`{name}` pads with {module.padding_mode!r}, not with zeros")
            self._need("first", name)
            self.steps.append(LinearStep(name, module))
        elif isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            self._need("last", name)
            self.steps.append(LinearStep(name, module))
        elif (channels := _norm_channels(module)) is not None:
            self._norm(name, module, channels)
        elif isinstance(module, nn.PReLU):
            if module.num_parameters > 1 and not self.flat:
                self._need("first", name)
            self.steps.append(ActStep(name, module))
        elif any(True for _ in module.parameters()) or not self._probe(name, module, strict=False):
            self._inside(name, module)

    def _inside(self, name: str, module: nn.Module) -> None:
        kind = type(module).__name__
        try:
            graph = trace_alone(module, both_modes=False)
        except NotTraceable as error:
            raise NotAChain(f"`{name}` ({kind}) cannot be traced: {error}") from error
        region = whole_region(graph)
        if region is None:
            raise NotAChain(f"`{name}` ({kind}) is not a path from one input to one output")
        try:
            self.read(module, graph, region.branch, f"{name}.")
        except NotAChain as error:
            raise NotAChain(f"`{name}` ({kind}) is not a chain: {error}") from error

    def _norm(self, name: str, module: nn.Module, channels: int) -> None:
        if getattr(module, "running_mean", 0) is None:
            raise NotAChain(f"`{name}` is a BatchNorm without running statistics")
        by_channel = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
        if isinstance(module, by_channel) and not self.flat:
            self._need("first", name)
        self.steps.append(NormStep(name, module, self.layout or "", channels))

    def _probe(self, name: str, function: Callable[[Tensor], Tensor], strict: bool = True) -> bool:
        kind = _probe_kind(function)
        if kind == "activation":
            self.steps.append(ActStep(name, function))
        elif isinstance(kind, float):
            self.steps.append(ScaleStep(name, torch.tensor(kind, dtype=torch.float64)))
        elif kind == "other" and strict:
            raise NotAChain(f"`{name}` is neither linear on channels nor elementwise")
        return kind != "other"

    def _permute(self, name: str, node: fx.Node) -> None:
        given = node.kwargs.get("dims", node.args[1:])
        assert isinstance(given, (tuple, list))
        dims = tuple(given[0] if len(given) == 1 else given)  # type: ignore[arg-type]
        source, target = {_TO_LAST: ("first", "last"), _TO_FIRST: ("last", "first")}.get(
            dims, ("", "")
        )
        if not source:
            raise NotAChain(f"`{name}` permutes dimensions as {dims}")
        self._need(source, name)
        self.layout = target

    def _need(self, layout: str, name: str) -> None:
        if self.layout is None:
            self.start = self.layout = layout
        elif self.layout != layout:
            raise NotAChain(f"`{name}` does not work along the channels")


def _norm_channels(module: nn.Module) -> int | None:
    """Channels of a norm whose forward is nothing but the norm; None for any other module."""
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        plain = type(module).forward is nn.modules.batchnorm._BatchNorm.forward
        return module.num_features if plain else None
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    shape = getattr(module, "normalized_shape", None)  # LayerNorm, RMSNorm and their kin
    if shape is not None and len(tuple(shape)) == 1 and not any(module.children()):
        return int(shape[0])
    return None


@torch.no_grad()
def _probe_kind(function: Callable[[Tensor], Tensor]) -> str | float:
    """'identity', 'activation' (elementwise), a scalar factor, or 'other', by trying it."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(2, 4, 4, 4, generator=generator, dtype=torch.float64)
    other = -2 * x.flip(3) - 1
    here = torch.rand(x.shape, generator=generator) < 0.5
    order = torch.randperm(x.numel(), generator=generator)
    modules = [function] if isinstance(function, nn.Module) else []
    training = [m.training for m in modules]
    try:
        for module in modules:
            module.eval()
        y, y_other = function(x.clone()), function(other.clone())
        if not isinstance(y, Tensor) or y.shape != x.shape:
            return "other"
        shuffled = function(x.flatten()[order].view_as(x).clone()).flatten()
        mixed = function(torch.where(here, x, other))
        if not torch.allclose(shuffled, y.flatten()[order], atol=1e-6) or not torch.allclose(
            mixed, torch.where(here, y, y_other), atol=1e-6
        ):
            return "other"
        if torch.equal(y, x) and torch.equal(y_other, other):
            return "identity"
        factor = float(y.flatten()[0] / x.flatten()[0])
        scales = torch.allclose(y, factor * x) and torch.allclose(y_other, factor * other)
        return factor if scales else "activation"
    except Exception:  # a module that wants another input is simply not elementwise
        return "other"
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.train(mode)


def _parameter(owner: nn.Module, node: fx.Node, source: fx.Node) -> nn.Parameter | None:
    """The parameter by which a product scales its data input, looking through reshapes."""
    others = [a for a in node.args if isinstance(a, fx.Node) and a is not source]
    if len(others) != 1:
        return None
    other = others[0]
    while other.target in _RESHAPES and len(other.all_input_nodes) == 1:
        other = other.all_input_nodes[0]
    if other.op != "get_attr":
        return None
    value = owner
    for part in str(other.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, nn.Parameter) else None
