"""Merged sites as data, and their emission into the graph of their block."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from updp.algebra import Affine, Operator, sides_of
from updp.blocks import Site
from updp.blocks.copying import copy_module
from updp.blocks.reading.linear import CONVOLUTIONS
from updp.blocks.reading.steps import ActStep, Call, order_of, per_channel
from updp.blocks.surgery import Replacement

_PADS: tuple[Callable[..., nn.Module], ...] = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)


@dataclass(frozen=True)
class MergedBlock:
    """`activation(operators(x) + skip)`, in float64 until it is written into a graph.

    `skip` is an operator beside the branch, a factor per channel (C,) for the block's own skip, or
    None if the skip is merged into the operator or missing. `layout` is that of the operators,
    `layout_in` and `layout_out` are those of the tensors that enter and leave.
    """

    operators: tuple[Operator, ...]
    skip: Operator | Tensor | None
    activation: ActStep | None
    layout: str
    layout_in: str
    layout_out: str

    def replacement(self, site: Site, dtype: torch.dtype, device: torch.device) -> Replacement:
        """See `MergedForm.replacement`: convolutions or linear layers, and the activation."""
        base = _base(site)
        names = [f"{base}{i or ''}" for i in range(len(self.operators))]
        added: dict[str, object] = {
            name: _as_module(op, self.layout, dtype, device)
            for name, op in zip(names, self.operators, strict=True)
        }
        activate = _activation(self.activation, f"{base}_act", added, dtype, device)
        if isinstance(self.skip, Operator):
            added[f"{base}_skip"] = _as_module(self.skip, self.layout, dtype, device)
        elif self.skip is not None:
            added[f"{base}_scale"] = _parameter(self.skip, self.layout, site, dtype, device)
        ndim = len(site.shape_in)

        def emit(graph: fx.Graph, x: fx.Node, skip: fx.Node) -> fx.Node:
            def move(node: fx.Node, source: str, target: str) -> fx.Node:
                if ndim < 3 or source == target:
                    return node
                return graph.call_method("permute", (node, *order_of(target, ndim)))

            x = y = move(x, self.layout_in, self.layout)
            for name in names:
                y = graph.call_module(name, (y,))
            if isinstance(self.skip, Operator):
                beside = graph.call_module(f"{base}_skip", (x,))
                y = graph.call_function(torch.add, (y, beside))
            elif self.skip is not None:
                scale = graph.get_attr(f"{base}_scale")
                beside = move(skip, self.layout_out, self.layout)
                y = graph.call_function(torch.addcmul, (y, beside, scale))
            y = move(activate(graph, y), self.layout, self.layout_out)
            return _laid_out(site, self.layout, graph, y)

        return Replacement(site.region, emit, added)


@dataclass(frozen=True)
class MergedSkip:
    """`activation(scale * skip + shift)`: a block without its branch."""

    affine: Affine
    activation: ActStep | None
    layout: str

    def replacement(self, site: Site, dtype: torch.dtype, device: torch.device) -> Replacement:
        """See `MergedForm.replacement`: two parameters, and the activation."""
        base = _base(site)
        added: dict[str, object] = {
            f"{base}_scale": _parameter(self.affine.scale, self.layout, site, dtype, device),
            f"{base}_shift": _parameter(self.affine.shift, self.layout, site, dtype, device),
        }
        activate = _activation(self.activation, f"{base}_act", added, dtype, device)

        def emit(graph: fx.Graph, x: fx.Node, skip: fx.Node) -> fx.Node:
            scale, shift = (graph.get_attr(f"{base}_{part}") for part in ("scale", "shift"))
            y = activate(graph, graph.call_function(torch.addcmul, (shift, skip, scale)))
            return _laid_out(site, self.layout, graph, y)

        return Replacement(site.region, emit, added)


def _laid_out(site: Site, layout: str, graph: fx.Graph, y: fx.Node) -> fx.Node:
    """The output in the memory format of the block's; see `Site.needs_contiguous`."""
    return graph.call_method("contiguous", (y,)) if site.needs_contiguous(layout) else y


def _base(site: Site) -> str:
    """Return the prefix of the names of modules that a site adds to its block."""
    return f"{site.name.partition(':')[2].replace('.', '_') or 'branch'}_merged"


def _parameter(
    values: Tensor, layout: str, site: Site, dtype: torch.dtype, device: torch.device
) -> nn.Parameter:
    """Make a parameter from one value per channel (C,) that broadcasts onto the site's maps."""
    shaped = per_channel(values, layout, len(site.shape_out))
    return nn.Parameter(shaped.clone().to(device, dtype))


def _activation(
    step: ActStep | None,
    name: str,
    added: dict[str, object],
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[fx.Graph, fx.Node], fx.Node]:
    """Return a function that writes the activation into a graph; a module is added to `added`."""
    function = step.function if step else None
    if isinstance(function, nn.Module):
        added[name] = copy_module(function).to(device, dtype)
        return lambda graph, x: graph.call_module(name, (x,))
    if isinstance(function, Call):
        return function.emit
    if function is not None:
        return lambda graph, x: graph.call_function(function, (x,))
    return lambda graph, x: x


def _as_module(op: Operator, layout: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Make a linear layer for layout `last`, else a convolution, with a pad layer if needed."""
    if layout == "last":
        linear = nn.Linear(op.in_channels, op.out_channels, dtype=dtype, device=device)
        return _fill(linear, op.weight.flatten(1), op.bias)
    sides = sides_of(op.padding)
    even = all(before == behind >= 0 for before, behind in sides)
    kind: Callable[..., nn.Module] = CONVOLUTIONS[op.dims - 1]
    conv = kind(
        op.in_channels,
        op.out_channels,
        op.kernel_size,
        op.stride,
        tuple(before for before, _ in sides) if even else 0,
        op.dilation,
        op.groups,
        dtype=dtype,
        device=device,
    )
    _fill(conv, op.weight, op.bias)
    return conv if even else nn.Sequential(_PADS[op.dims - 1](op.padding), conv)


def _fill(module: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    with torch.no_grad():
        module.get_parameter("weight").copy_(weight)
        module.get_parameter("bias").copy_(bias)
    return module
