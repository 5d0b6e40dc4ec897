"""Read a path through a block's graph as a chain of steps.

No model is known by name: a module is a convolution, a linear layer or a norm, or it is traced
alone and read in turn, or its behaviour is probed. Reading may guess, because `read_site` compares
every chain with its block on real inputs.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from updp.blocks.modules import UserCodeError, call_user_code
from updp.blocks.reading.layouts import OTHER, layout_of, normalized, usual_layout
from updp.blocks.reading.linear import CONVOLUTIONS, LinearStep
from updp.blocks.reading.probe import (
    channels_if_near_a_line,
    kind_of,
    permutation_of,
    zero_padding_of,
)
from updp.blocks.reading.steps import (
    ActStep,
    Call,
    Chain,
    Factor,
    NormStep,
    ScaleStep,
    Step,
    batch_norm,
    order_of,
)
from updp.blocks.surgery import extract
from updp.blocks.teach import taught_operator
from updp.blocks.tracing.calls import Arguments
from updp.blocks.tracing.interpret import NotTraceable
from updp.blocks.tracing.region import data_nodes, groups, whole_region
from updp.blocks.tracing.trace import trace_alone

_MULS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_PERMUTES = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "rearrange"}
_SAME = {"contiguous", "clone"}
_RESHAPES = {"reshape", "view", "unsqueeze", torch.reshape, torch.unsqueeze}


_FLIPPED = "flipped"  # layout of a norm that reads a sequence of unknown layout transposed


class NotAChain(Exception):
    """A path is not a chain of linear operators, norms and activations; the text is the reason."""


def read_chain(block: nn.Module, graph: fx.Graph, path: Sequence[str], x: Tensor) -> Chain:
    """Read the nodes `path`, in order, of a block's graph as a chain.

    `x` is a real input of the path: (N, C, ...) or (N, ..., C), with any number of axes.

    Raises:
        NotAChain: something on the path is neither linear, nor a norm, nor an activation.
    """
    if x.ndim < 2:
        raise NotAChain(f"its tensor has {x.ndim} dimensions: none holds its channels")
    reader = _Reader(x)
    with torch.no_grad():
        reader.read(block, graph, path, prefix="")
    if reader.padded:
        raise NotAChain("it ends in zero padding that no convolution reads")
    layout_in = reader.start or usual_layout(x.ndim)
    known = {"": layout_in, _FLIPPED: OTHER[layout_in]}
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


class _Reader:
    """Collects the steps of a path; runs each on the tensor, and keeps track of its layout.

    The layout of a tensor of 3 to 5 axes is None until a module shows which of them holds the
    channels. `start` is the layout at the entry of the path. `padded` are zeros that were put
    around the tensor, (before, behind) of each axis, which the next operator takes in.
    """

    flipped = False  # whether a sequence of unknown layout has been transposed

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.start = self.layout = None if x.ndim in (3, 4, 5) else "last"
        self.flat = x.ndim == 2  # (N, C): the channels are both first and last
        self.steps: list[Step] = []
        self.padded: tuple[tuple[int, int], ...] = ()

    @property
    def layout_now(self) -> str:
        """The layout, or what stands for one that is not known yet."""
        return self.layout or (_FLIPPED if self.flipped else "")

    def read(self, owner: nn.Module, graph: fx.Graph, path: Sequence[str], prefix: str) -> None:
        """Read the nodes of a path; `prefix` is the path of `owner` in the block, with its dot."""
        data = data_nodes(graph)
        previous: fx.Node | None = None
        for group in groups(graph, path):
            node = group[-1]
            name = f"{prefix}{node.target if node.op == 'call_module' else node.name}"
            inputs = {p for n in group for p in n.all_input_nodes if p in data and p not in group}
            if len(inputs) != 1 or (previous is not None and inputs != {previous}):
                raise NotAChain(f"`{name}` takes several inputs")
            (source,) = inputs
            if len(group) == 1:
                self._node(name, owner, node, source, prefix)
            else:
                part = extract(owner, graph, source.name, node.name)
                self._other(name, part, f"`{name}` takes several inputs")
            previous = node

    def _node(
        self, name: str, owner: nn.Module, node: fx.Node, source: fx.Node, prefix: str
    ) -> None:
        call = Call.of(node, source)
        if node.op == "call_module":
            if node.args != (source,) or node.kwargs:  # further arguments, such as flags
                part = extract(owner, node.graph, source.name, node.name)
                self._other(name, part, f"`{name}` takes more than a tensor")
                return
            self._module(name, owner.get_submodule(str(node.target)))
        elif _permutes(node):
            self._permute(name, call)
            self._advance(call)
        elif node.target is F.batch_norm and isinstance(owner, nn.modules.batchnorm._BatchNorm):
            self._norm(prefix.rstrip("."), owner, owner.num_features)
            self._advance(lambda x: batch_norm(owner, x))
        elif node.target in _MULS and (gamma := _parameter(owner, node, source)) is not None:
            self._add(ScaleStep(name, gamma))
            self._advance(extract(owner, node.graph, source.name, node.name))
        elif node.target not in _SAME:
            # A `Call` can be added to a merged block's graph; with parameters it must be a module.
            alone = all(n is source for n in node.all_input_nodes)
            function = call if alone else extract(owner, node.graph, source.name, node.name)
            self._other(name, function, f"`{name}` is neither linear on channels nor elementwise")

    def _advance(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace the tensor by what `function` makes of it."""
        try:
            self.x = call_user_code(function, self.x.clone())
        except UserCodeError as error:
            raise NotAChain(f"it does not run alone: {error}") from error

    def _module(self, name: str, module: nn.Module) -> None:
        if (taught := taught_operator(module)) is not None or isinstance(
            module, (*CONVOLUTIONS, nn.Linear)
        ):
            maps = isinstance(module, CONVOLUTIONS) if taught is None else taught.weight.ndim > 2
            self._need("first" if maps else "last", name)
            try:
                step = LinearStep.read(name, module, self.x)
            except ValueError as error:
                raise NotAChain(f"`{name}` ({type(module).__name__}) {error}") from error
            self.steps.append(step.behind(self._take_padding(name)))
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            raise NotAChain(f"`{name}` is a transposed convolution, whose output grid is finer")
        elif (channels := _norm_channels(module)) is not None:
            self._norm(name, module, channels)
        elif isinstance(module, nn.PReLU):
            if module.num_parameters > 1 and not self.flat:
                self._need("first", name)
            self._add(ActStep(name, module))
        elif any(True for _ in module.parameters()) or not self._probe(name, module):
            self._inside(name, module)
            return
        self._advance(module)

    def _inside(self, name: str, module: nn.Module) -> None:
        """Read a module of an unknown class: as a chain of its own, else as a gate."""
        kind, count = type(module).__name__, len(self.steps)
        before = self.x, self.start, self.layout, self.padded, self.flipped
        layout = self.layout
        try:
            graph = trace_alone(module, Arguments((self.x.clone(),)), both_modes=False)
            region = whole_region(graph)
            if region is None:
                raise NotAChain(f"`{name}` ({kind}) is not a path from one input to one output")
            self.read(module, graph, region.branch, f"{name}.")
            only = self.steps[-1] if len(self.steps) == count + 1 else None
            if (
                isinstance(only, NormStep)
                and isinstance(only.module, fx.GraphModule)
                and only.layout == (layout or self.start)
            ):
                # The extracted nodes are the whole forward: let the step name the user's module.
                self.steps[-1] = replace(only, name=name, module=module)
            return
        except NotTraceable as error:
            reason = f"`{name}` ({kind}) cannot be traced: {error}"
        except NotAChain as error:
            reason = f"`{name}` ({kind}) is not a chain: {error}"
        self.x, self.start, self.layout, self.padded, self.flipped = before
        del self.steps[count:]
        self._other(name, module, reason)

    def _norm(self, name: str, module: nn.Module, channels: int) -> None:
        if getattr(module, "running_mean", 0) is None:
            raise NotAChain(f"`{name}` is a BatchNorm without running statistics")
        by_channel = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
        if isinstance(module, by_channel) and not self.flat:
            self._need("first", name)
        first, last = self.x.shape[1], self.x.shape[-1]
        if normalized(module) and not self.flat and first != last:
            self._need("last" if last == channels else "first", name)
        self._add(NormStep(name, module, self.layout_now, channels))

    def _probe(self, name: str, function: Callable[[Tensor], Tensor]) -> bool:
        """Add an elementwise function as an activation or a scale; False for any other."""
        kind = kind_of(function)
        learns = isinstance(function, nn.Module) and any(True for _ in function.parameters())
        if learns and isinstance(function, nn.Module) and kind not in ("activation", "other"):
            self._add(ScaleStep(name, Factor(function)))  # even where it is 1 as yet
        elif kind == "activation":
            self._add(ActStep(name, function))
        elif isinstance(kind, float):
            self._add(ScaleStep(name, torch.tensor(kind, dtype=torch.float64)))
        return kind != "other"

    def _other(self, name: str, function: Callable[[Tensor], Tensor], reason: str) -> None:
        """Add an elementwise function, or one near to a line per channel, as norms and gates are.

        Zero padding is kept for the next operator. Raises NotAChain with `reason` for any other.
        """
        if not self._probe(name, function) and not self._pad(name, function):
            layout = self.layout
            if layout is None:
                layout = usual_layout(self.x.ndim)
                if isinstance(function, nn.Module):
                    layout = layout_of(function, self.x)
            if not (channels := channels_if_near_a_line(function, self.x, layout)):
                raise NotAChain(reason)
            self._need(layout, name)
            self._add(NormStep(name, function, layout, channels))
        self._advance(function)

    def _pad(self, name: str, function: Callable[[Tensor], Tensor]) -> bool:
        """Note zeros that the function puts around the tensor; False for any other function."""
        if (sides := zero_padding_of(function, self.x)) is None:
            return False
        if self.padded:
            raise NotAChain(f"`{name}` pads what is padded already")
        self.padded = sides
        return True

    def _take_padding(self, name: str) -> tuple[tuple[int, int], ...]:
        """The zeros around the tensor on each of its axes but images and channels."""
        sides = [*self.padded]
        if sides:
            ends = sides.pop(1 if self.layout == "first" else -1), sides.pop(0)
            if any(map(any, ends)):
                raise NotAChain(f"`{name}` reads channels that were filled up with zeros")
        self.padded = ()
        return tuple(sides)

    def _add(self, step: Step) -> None:
        """Add a step that is no linear operator."""
        if self.padded:
            raise NotAChain(f"`{step.name}` stands between zero padding and its convolution")
        self.steps.append(step)

    def _permute(self, name: str, call: Callable[[Tensor], Tensor]) -> None:
        axes = permutation_of(call, self.x.ndim)
        ndim = self.x.ndim
        targets = [t for t in OTHER if ndim > 2 and axes == order_of(t, ndim) and t != self.layout]
        if axes is None or not targets:
            raise NotAChain(f"`{name}` permutes dimensions as {axes}")
        if len(targets) > 1:  # a sequence of unknown layout
            self.flipped = not self.flipped
        else:
            self._need(OTHER[targets[0]], name)
            self.layout = targets[0]
        if self.padded:
            self.padded = tuple(self.padded[axis] for axis in axes)

    def _need(self, layout: str, name: str) -> None:
        """Check that the tensor has this layout, or settle that it has."""
        if self.layout is None:
            self.layout = layout
            self.start = OTHER[layout] if self.flipped else layout
        elif self.layout != layout:
            raise NotAChain(f"`{name}` does not work along the channels")


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
    shape = getattr(module, "normalized_shape", None)  # LayerNorm, RMSNorm and their kin
    if shape is not None and len(tuple(shape)) == 1 and not any(module.children()):
        return int(shape[0])
    return None


def _parameter(owner: nn.Module, node: fx.Node, source: fx.Node) -> nn.Parameter | None:
    """The parameter, reshaped or not, by which a product scales its input `source`; else None."""
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
