"""Merged sites as data, and their emission into the graph of their block."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from updp.algebra import Affine, Operator
from updp.blocks import Site
from updp.blocks.modules import copy_module
from updp.blocks.reading.steps import ActStep, Call
from updp.blocks.surgery import Replacement


@dataclass(frozen=True)
class MergedBlock:
    """`activation(operators(x) + skip)`, in float64 until it is written into a graph.

    `skip` is an operator beside the branch, a factor per channel (C,) on the block's own skip, or
    None when the skip is merged into the operator (or there is none). The layouts are those of the
    operators, of the tensor that enters and of the one that leaves.
    """

    operators: tuple[Operator, ...]
    skip: Operator | Tensor | None
    activation: ActStep | None
    layout: str
    layout_in: str
    layout_out: str

    def replacement(self, site: Site, dtype: torch.dtype, device: torch.device) -> Replacement:
        """See `MergedForm.replacement`: convolutions or linear layers, and their activation."""
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
            added[f"{base}_scale"] = _parameter(self.skip, self.layout, dtype, device)
        flat = len(site.shape_in) != 4

        def emit(graph: fx.Graph, x: fx.Node, skip: fx.Node) -> fx.Node:
            def move(node: fx.Node, source: str, target: str) -> fx.Node:
                if flat or source == target:
                    return node
                dims = (0, 3, 1, 2) if target == "first" else (0, 2, 3, 1)
                return graph.call_method("permute", (node, *dims))

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
            return move(activate(graph, y), self.layout, self.layout_out)

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
            f"{base}_scale": _parameter(self.affine.scale, self.layout, dtype, device),
            f"{base}_shift": _parameter(self.affine.shift, self.layout, dtype, device),
        }
        activate = _activation(self.activation, f"{base}_act", added, dtype, device)

        def emit(graph: fx.Graph, x: fx.Node, skip: fx.Node) -> fx.Node:
            scale, shift = (graph.get_attr(f"{base}_{part}") for part in ("scale", "shift"))
            return activate(graph, graph.call_function(torch.addcmul, (shift, skip, scale)))

        return Replacement(site.region, emit, added)


def _base(site: Site) -> str:
    """Return the prefix of the names that a site adds to its block."""
    return f"{site.name.partition(':')[2].replace('.', '_') or 'branch'}_merged"


def _parameter(
    values: Tensor, layout: str, dtype: torch.dtype, device: torch.device
) -> nn.Parameter:
    """Make a parameter of one value per channel (C,) that broadcasts onto a feature map."""
    shape = (-1,) if layout == "last" else (-1, 1, 1)
    return nn.Parameter(values.reshape(shape).to(device, dtype))


def _activation(
    step: ActStep | None,
    name: str,
    added: dict[str, object],
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[fx.Graph, fx.Node], fx.Node]:
    """Return a function that writes the activation into a graph; a module is put into `added`."""
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
    """Make a linear layer for layout `last`, else a convolution, behind a pad layer if uneven."""
    if layout == "last":
        linear = nn.Linear(op.in_channels, op.out_channels, dtype=dtype, device=device)
        return _fill(linear, op.weight[:, :, 0, 0], op.bias)
    left, right, top, bottom = op.padding
    even = left == right and top == bottom and min(op.padding) >= 0
    conv = nn.Conv2d(
        op.in_channels,
        op.out_channels,
        op.kernel_size,
        op.stride,
        (top, left) if even else 0,
        op.dilation,
        op.groups,
        dtype=dtype,
        device=device,
    )
    _fill(conv, op.weight, op.bias)
    return conv if even else nn.Sequential(nn.ZeroPad2d(op.padding), conv)


def _fill(module: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Module:
    with torch.no_grad():
        module.weight.copy_(weight)
        assert module.bias is not None
        module.bias.copy_(bias)
    return module
