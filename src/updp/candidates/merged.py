"""What a merged site is made of, and how it is written into its block's graph."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from updp.algebra import Operator
from updp.blocks import Site
from updp.blocks.extract import Emit, Replacement
from updp.blocks.steps import ActStep, Call

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class Merged:
    """`activation(operators(x) + skip)`, all in float64 until it is written.

    `skip` is an operator beside the branch, a factor per channel (C,) on the block's own skip, or
    None when the skip went into the operator (or never was).
    """

    operators: tuple[Operator, ...]
    skip: Operator | Tensor | None
    activation: ActStep | None
    layout: str

    def replacement(self, site: Site, dtype: torch.dtype, device: torch.device) -> Replacement:
        """As ordinary modules in the graph of the site's block."""
        base = f"{site.name.partition(':')[2].replace('.', '_') or 'branch'}_merged"
        names = [f"{base}{i or ''}" for i in range(len(self.operators))]
        added: dict[str, object] = {
            name: _as_module(op, self.layout, dtype, device)
            for name, op in zip(names, self.operators, strict=True)
        }
        act_name = f"{base}_act"
        act = self.activation.function if self.activation else None
        if isinstance(act, nn.Module):
            added[act_name] = copy.deepcopy(act).to(device, dtype)
        if isinstance(self.skip, Operator):
            added[f"{base}_skip"] = _as_module(self.skip, self.layout, dtype, device)
        elif self.skip is not None:
            shape = (-1,) if self.layout == "last" else (-1, 1, 1)
            scale = nn.Parameter(self.skip.reshape(shape).to(device, dtype))
            added[f"{base}_scale"] = scale

        branch = site.branch if len(site.shape_in) == 4 else None

        def emit(graph: fx.Graph, x: fx.Node, skip: fx.Node) -> fx.Node:
            def move(node: fx.Node, source: str, target: str) -> fx.Node:
                dims = TO_FIRST if target == "first" else TO_LAST
                return graph.call_method("permute", (node, *dims)) if source != target else node

            layout_in = branch.layout_in if branch else self.layout
            layout_out = branch.layout_out if branch else self.layout
            x = y = move(x, layout_in, self.layout)
            for name in names:
                y = graph.call_module(name, (y,))
            if isinstance(self.skip, Operator):
                beside = graph.call_module(f"{base}_skip", (x,))
                y = graph.call_function(torch.add, (y, beside))
            elif self.skip is not None:
                scale = graph.get_attr(f"{base}_scale")
                beside = move(skip, layout_out, self.layout)
                y = graph.call_function(torch.addcmul, (y, beside, scale))
            if isinstance(act, nn.Module):
                y = graph.call_module(act_name, (y,))
            elif isinstance(act, Call):
                y = act.emit(graph, y)
            elif act is not None:
                y = graph.call_function(act, (y,))
            return move(y, self.layout, layout_out)

        emit_typed: Emit = emit
        return Replacement(site.region, emit_typed, added)


def _as_module(op: Operator, layout: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A linear layer on the last axis, or a convolution (with its own padding, if uneven)."""
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
