"""Read a path through a block's graph as a chain of steps.

No model is known by name: a module is a convolution, a linear layer or a norm, or its own graph is
traced and read, or its behaviour is probed. Reading may guess, because `read_site` compares every
chain with its block on real inputs.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from updp.blocks.reading.composed import read_composed
from updp.blocks.reading.cursor import FLIPPED, Cursor, NotAChain
from updp.blocks.reading.layouts import OTHER, layout_of, normalized, usual_layout
from updp.blocks.reading.linear import CONVOLUTIONS, LinearStep
from updp.blocks.reading.probe import channels_if_near_a_line, kind_of, moved
from updp.blocks.reading.steps import (
    ActStep,
    Call,
    Chain,
    Factor,
    NormStep,
    ScaleStep,
    Step,
    batch_norm,
)
from updp.blocks.surgery import extract
from updp.blocks.teach import taught_operator
from updp.blocks.tracing.any_size import trace_inside
from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.interpret import NotTraceable
from updp.blocks.tracing.region import data_nodes, groups, is_mul, whole_region

_PERMUTES = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "rearrange"}
_SAME = {"contiguous", "clone"}
_RESHAPES = {"reshape", "view", "unsqueeze", torch.reshape, torch.unsqueeze}
_TOGETHER = 8  # maximum number of groups of nodes in a permutation of channels


def read_chain(
    block: nn.Module, graph: fx.Graph, path: Sequence[str], x: Tensor, prefix: str = ""
) -> Chain:
    """Read the nodes `path`, in order, of a block's graph as a chain.

    `x` is a real input of the path: (N, C, ...) or (N, ..., C), with any number of axes. `prefix`
    is put before the names of all steps, for a `block` that is a module inside of another.

    Raises:
        NotAChain: a node on the path is neither linear, nor a norm, nor an activation.
    """
    if x.ndim < 2:
        raise NotAChain(f"its tensor has {x.ndim} dimensions: none holds its channels")
    reader = _Reader(x)
    with torch.no_grad():
        reader.read(block, graph, path, prefix)
    if reader.padded:
        raise NotAChain("it ends in zero padding that no convolution reads")
    layout_in = reader.start or usual_layout(x.ndim)
    known = {"": layout_in, FLIPPED: OTHER[layout_in]}
    convolves = any(isinstance(s, LinearStep) and s.spatial for s in reader.steps)
    layout = "first" if convolves else layout_in
    dims = x.ndim - 2 if layout == "first" else 2
    if dims > 3:
        raise NotAChain(f"its tensor has {x.ndim} dimensions, and its channels are not the last")

    def settled(step: Step) -> Step:
        if isinstance(step, NormStep):
            return replace(step, layout=known.get(step.layout, step.layout))
        return step.on(dims) if isinstance(step, LinearStep) else step

    steps = tuple(map(settled, reader.steps))
    layout_out = known.get(reader.layout_now, reader.layout_now)
    return Chain(steps, layout, layout_in, layout_out, dims)


class _Reader(Cursor):
    """Reads the nodes of a path as steps; runs each on the tensor."""

    def read(self, owner: nn.Module, graph: fx.Graph, path: Sequence[str], prefix: str) -> None:
        """Read the nodes of a path; `prefix` is the path of `owner` in the block plus a dot."""
        data = data_nodes(graph)
        previous: fx.Node | None = None
        rest = groups(graph, path)
        while rest:
            group = rest[0]
            node = group[-1]
            name = f"{prefix}{node.target if node.op == 'call_module' else node.name}"
            inputs = {p for n in group for p in n.all_input_nodes if p in data and p not in group}
            if len(inputs) != 1 or (previous is not None and inputs != {previous}):
                raise NotAChain(f"`{name}` takes several inputs")
            (source,) = inputs
            count, before = 1, self.state
            try:
                if len(group) == 1:
                    self._node(name, owner, node, source, prefix)
                else:
                    part = extract(owner, graph, source.name, node.name)
                    self._other(name, part, f"`{name}` takes several inputs", prefix)
            except NotAChain:
                self.state = before
                if not (count := self._shuffle(name, owner, source, rest)):
                    raise
            previous, rest = rest[count - 1][-1], rest[count:]

    def _shuffle(
        self, name: str, owner: nn.Module, source: fx.Node, rest: list[list[fx.Node]]
    ) -> int:
        """Read the first groups of nodes as one permutation; return their number, 0 if none."""
        data, inside = data_nodes(source.graph), {source}
        for count, group in enumerate(rest[:_TOGETHER], 1):
            inside.update(group)
            if any(node.op not in ("call_function", "call_method") for node in group):
                return 0
            if any(p in data and p not in inside for node in group for p in node.all_input_nodes):
                return 0  # a size of another tensor, say
            part = extract(owner, source.graph, source.name, group[-1].name)
            if self.reorder(name, part):
                self.advance(part)
                return count
        return 0

    def _node(
        self, name: str, owner: nn.Module, node: fx.Node, source: fx.Node, prefix: str
    ) -> None:
        call = Call.of(node, source)
        if node.op == "call_module":
            if node.args != (source,) or node.kwargs:  # further arguments, such as flags
                part = extract(owner, node.graph, source.name, node.name)
                self._other(name, part, f"`{name}` takes more than a tensor", prefix)
                return
            self._module(name, owner.get_submodule(str(node.target)))
        elif _permutes(node):
            self.permute(name, call)
            self.advance(call)
        elif node.target is F.batch_norm and isinstance(owner, nn.modules.batchnorm._BatchNorm):
            self._norm(prefix.rstrip("."), owner, owner.num_features)
            self.advance(lambda x: batch_norm(owner, x))
        elif is_mul(node) and (gamma := _parameter(owner, node, source)) is not None:
            self.scale(ScaleStep(name, gamma), extract(owner, node.graph, source.name, node.name))
        elif node.target not in _SAME:
            # A `Call` can be added to a merged block's graph; with parameters it must be a module.
            alone = all(n is source for n in node.all_input_nodes)
            function = call if alone else extract(owner, node.graph, source.name, node.name)
            reason = f"`{name}` is neither linear on channels nor elementwise"
            self._other(name, function, reason, prefix)

    def _module(self, name: str, module: nn.Module) -> None:
        if (taught := taught_operator(module)) is not None or isinstance(
            module, (*CONVOLUTIONS, nn.Linear)
        ):
            maps = isinstance(module, CONVOLUTIONS) if taught is None else taught.weight.ndim > 2
            self.need("first" if maps else "last", name)
            try:
                step = LinearStep.read(name, module, self.x)
            except ValueError as error:
                raise NotAChain(f"`{name}` ({type(module).__name__}) {error}") from error
            self.steps.append(step.padded(self.take_padding(name)))
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            raise NotAChain(f"`{name}` is a transposed convolution, whose output grid is finer")
        elif (channels := _norm_channels(module)) is not None:
            self._norm(name, module, channels)
        elif isinstance(module, nn.PReLU):
            if module.num_parameters > 1 and not self.flat:
                self.need("first", name)
            self.add(ActStep(name, module))
        elif any(True for _ in module.parameters()) or not self._probe(name, module):
            self._inside(name, module)
            return
        self.advance(module)

    def _inside(self, name: str, module: nn.Module) -> None:
        """Read a module of an unknown class: as a chain of its own, else as a norm or a gate."""
        kind, count = type(module).__name__, len(self.steps)
        before, layout = self.state, self.layout
        try:
            graph = trace_inside(module, Arguments((self.x.clone(),)))
            region = whole_region(graph)
            if (step := read_composed(name, module, graph)) is not None:
                self.need("first" if step.convolves else "last", name)
                self.steps.append(step.padded(self.take_padding(name)))
                self.advance(module)
                return
            if region is None:
                raise NotAChain(f"`{name}` ({kind}) is not a path from one input to one output")
            self.read(module, graph, region.branch, f"{name}.")
            only = self.steps[-1] if len(self.steps) == count + 1 else None
            if (
                isinstance(only, NormStep)
                and isinstance(only.module, fx.GraphModule | Call)
                and only.layout == (layout or self.start)
            ):
                # These nodes are the whole forward: let the step name the user's module.
                self.steps[-1] = replace(only, name=name, module=module, prefix="")
            return
        except NotTraceable as error:
            reason = f"`{name}` ({kind}) cannot be traced: {error}"
        except NotAChain as error:
            reason = f"`{name}` ({kind}) is not a chain: {error}"
        self.state = before
        self._other(name, module, reason)

    def _norm(self, name: str, module: nn.Module, channels: int) -> None:
        if getattr(module, "running_mean", 0) is None:
            raise NotAChain(f"`{name}` is a BatchNorm without running statistics")
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise NotAChain(f"`{name}` is a BatchNorm that trains in evaluation mode, too")
        by_channel = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
        if isinstance(module, by_channel) and not self.flat:
            self.need("first", name)
        first, last = self.x.shape[1], self.x.shape[-1]
        if normalized(module) and not self.flat and first != last:
            self.need("last" if last == channels else "first", name)
        self.add(NormStep(name, module, self.layout_now, channels))

    def _probe(self, name: str, function: Callable[[Tensor], Tensor]) -> bool:
        """Add an elementwise function as an activation or a scale; False for any other."""
        # Tested first, on the real tensor: with few channels a shuffle may be the identity.
        if self.reorder(name, function):
            return True
        learns = isinstance(function, nn.Module) and any(True for _ in function.parameters())
        kind = kind_of(moved(function) if isinstance(function, nn.Module) else function, self.x)
        if learns and isinstance(function, nn.Module) and kind not in ("activation", "other"):
            self.add(ScaleStep(name, Factor(function)))  # even if it is still 1
        elif kind == "activation":
            self.add(ActStep(name, function))
        elif isinstance(kind, float):
            self.add(ScaleStep(name, torch.tensor(kind, dtype=torch.float64)))
        return kind != "other"

    def _other(
        self, name: str, function: Callable[[Tensor], Tensor], reason: str, prefix: str = ""
    ) -> None:
        """Add an elementwise function, or one close to a line per channel, such as norms and gates.

        Zero padding is kept for the next operator. Raises NotAChain with `reason` for all others.
        """
        known = self._probe(name, function) or self.pad(name, function)
        if not known and not self.crop(function):
            layout = self.layout
            if layout is None:
                layout = usual_layout(self.x.ndim)
                if isinstance(function, nn.Module):
                    layout = layout_of(function, self.x)
            if not (channels := channels_if_near_a_line(function, self.x, layout)):
                raise NotAChain(reason)
            self.need(layout, name)
            self.add(NormStep(name, function, layout, channels, prefix))
        self.advance(function)


def _permutes(node: fx.Node) -> bool:
    """Whether the node may be a permutation of axes, by its name."""
    if node.target is getattr:
        return "mT" in node.args
    return getattr(node.target, "__name__", node.target) in _PERMUTES


def _norm_channels(module: nn.Module) -> int | None:
    """Number of channels of a norm whose forward does nothing else; None for other modules."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        plain = type(module).forward is nn.modules.batchnorm._BatchNorm.forward
        return module.num_features if plain else None
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    shape = getattr(module, "normalized_shape", None)  # LayerNorm, RMSNorm and similar norms
    if shape is not None and len(tuple(shape)) == 1 and not any(module.children()):
        return int(shape[0])
    return None


def _parameter(owner: nn.Module, node: fx.Node, source: fx.Node) -> nn.Parameter | None:
    """Parameter (perhaps reshaped) by which a product scales its input `source`; else None."""
    others = [a for a in node.args if isinstance(a, fx.Node) and a is not source]
    if len(others) != 1:
        return None
    other = others[0]
    while other.target in _RESHAPES and len(other.all_input_nodes) == 1:
        other = other.all_input_nodes[0]
    if other.op != "get_attr":
        return None
    value = operator.attrgetter(str(other.target))(owner)
    return value if isinstance(value, nn.Parameter) else None
