"""The form of a smaller attention: the block, with its attention on two layers of the form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer

from updp import algebra
from updp.blocks import Site, TracedSite
from updp.blocks.copying import copy_module
from updp.blocks.modules import evaluating, like_of, seeded_input
from updp.blocks.surgery import Replacement
from updp.candidates.attention.heads import Heads
from updp.candidates.parts.regraph import RewiredForm
from updp.fit import FitTask, Fitted, Regression, as_maps, clamp_of
from updp.fit.operator import channel_factor
from updp.recipe import FitSettings

if TYPE_CHECKING:
    from updp.candidates.attention.candidate import NarrowAttention

_NAMED = "attention_{}"  # names of the modules added to a block


class NarrowAttentionForm(RewiredForm):
    """The block with its attention rewritten on two linear layers that the form owns.

    Before calibration, what to keep is chosen as if all channels of the tokens were equally strong.
    """

    def __init__(
        self,
        traced: TracedSite,
        candidate: NarrowAttention,
        heads: Heads,
    ) -> None:
        site = traced.site
        layout, like = candidate.layout, like_of(traced.block)
        tokens = torch.eye(heads.query.shape[-1] - 1).to(heads.query)[None]
        if heads.offsets is not None:  # offsets belong to a fixed number of tokens
            shape = (len(heads.offsets), heads.offsets.shape[-1], tokens.shape[-1])
            tokens = seeded_input(shape, tokens)
        modules = candidate.cut(heads, tokens).modules(like)
        part = traced.isolate(_replacement(site, candidate, modules))
        super().__init__(traced, part)
        for name, module in modules.items():
            self.add_module(name, module)
        self.heads = list(modules)  # names of the modules
        self._candidate, self._whole_heads, self._site = candidate, heads, site
        region = site.region
        self._enter: list[Callable[..., Tensor]] = []
        if layout.start != region.entry:
            self._enter.append(traced.until(layout.start))
        self._norm = [traced.block.get_submodule(layout.norm)] if layout.norm else []
        # Computed anew for each fit, because training may change the factor.
        self._find_factor = partial(_factor_behind, traced, layout.end)
        end, skip = layout.end, None
        if self._find_factor() is not None:
            end, skip = region.branch[-1], traced.skip()
        self._whole = [traced.until(end)]
        self._skip = [] if skip is None else [skip]

    @torch.no_grad()
    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Choose what to keep of the heads, on the tokens of the inputs `x`."""
        whole = self._whole_heads
        left = self._candidate.cut(whole, self._tokens(x, *extras).to(whole.out))
        for name, module in left.modules(self._out.weight).items():
            self.get_submodule(name).load_state_dict(module.state_dict())

    def fit_tasks(self, settings: FitSettings, batches: int) -> list[FitTask]:
        """See `Form.fit_tasks`: one regression, of the layer behind the heads.

        It includes a factor per channel behind that layer, and then the skip, if there is one.
        """
        candidate, out, post = self._candidate, self._out, self._site.post
        factor = self._find_factor() if self._skip else None
        if factor is None:
            factor = torch.ones(out.out_features, dtype=torch.float64, device=out.weight.device)

        def beside(x: Tensor) -> Tensor | None:
            return next((as_maps(skip(x.clone()), "last") for skip in self._skip), None)

        def target(x: Tensor, *extras: Any) -> Tensor:
            skip, y = beside(x), as_maps(self._whole[0](x.clone(), *extras), "last")
            return y if skip is None else y + skip

        def inputs(x: Tensor, *extras: Any) -> tuple[Tensor, Tensor | None]:
            y = candidate.attend(self._modules, self._tokens(x, *extras), len(x))
            return as_maps(y, "last"), beside(x)

        @torch.no_grad()
        def install(fitted: Fitted) -> None:
            out.weight.copy_(fitted.operator.weight.flatten(1) / factor[:, None])
            out.bias.copy_(fitted.operator.bias / factor)

        clamp = clamp_of(post.function if post and self._skip else None, out.weight)
        prior = algebra.after(
            algebra.from_linear(out), algebra.Affine(factor, torch.zeros_like(factor))
        )
        regression = Regression(prior, clamp, settings, batches)
        return [FitTask(candidate.layout.out, regression, target, inputs, install)]

    def merged(self) -> MergedAttention:
        """See `Form.merged`."""
        return MergedAttention(
            self._candidate, {name: self.get_submodule(name) for name in self.heads}
        )

    @property
    def _out(self) -> nn.Linear:
        return cast(nn.Linear, self.get_submodule("out"))

    def _tokens(self, x: Tensor, *extras: Any) -> Tensor:
        """Tokens that the attention reads, computed from the site's inputs."""
        x = x.clone()
        for enter in self._enter:
            x = enter(x, *extras)
        for norm in self._norm:
            x = norm(x)
        return x


@dataclass(frozen=True)
class MergedAttention:
    """The block's own nodes, with the smaller attention in place of its own."""

    candidate: NarrowAttention
    modules: Mapping[str, nn.Module]

    def replacement(self, site: Site, dtype: torch.dtype, device: torch.device) -> Replacement:
        """See `MergedForm.replacement`."""
        modules = {n: copy_module(m).to(device, dtype) for n, m in self.modules.items()}
        return _replacement(site, self.candidate, modules)


def _replacement(
    site: Site, candidate: NarrowAttention, modules: Mapping[str, nn.Module]
) -> Replacement:
    """The region with two linear layers, and attention between them, in place of its own."""
    layout, region = candidate.layout, site.region

    def emit(graph: fx.Graph, x: fx.Node, skip: fx.Node) -> fx.Node:
        nodes = [n for n in graph.nodes if n.name in region.inside - {*region.skip}]
        new: dict[fx.Node, fx.Node] = {}
        start = x  # not looked up by the entry's name: that node may have been replaced
        for node in nodes:
            if node.name == layout.end:
                new[node] = last = emit_attention(graph, x, start)
            else:
                new[node] = last = graph.node_copy(node, lambda n: new.get(n, n))
            if node.name == layout.start:
                start = last
        return last

    def emit_attention(graph: fx.Graph, x: fx.Node, y: fx.Node) -> fx.Node:
        tracer = GraphAppendingTracer(graph)

        def call(name: str, *args: fx.Proxy) -> fx.Proxy:
            node = graph.call_module(_NAMED.format(name), tuple(a.node for a in args))
            return fx.Proxy(node, tracer)

        if layout.norm:
            y = graph.call_module(layout.norm, (y,))
        calls = {name: partial(call, name) for name in modules}
        tokens, images = fx.Proxy(y, tracer), fx.Proxy(x, tracer).size(0)
        mixed = candidate.attend(calls, tokens, images)  # type: ignore[arg-type]
        return calls["out"](mixed).node  # type: ignore[arg-type]

    return Replacement(region, emit, {_NAMED.format(n): m for n, m in modules.items()})


@torch.no_grad()
def _factor_behind(traced: TracedSite, end: str) -> Tensor | None:
    """The factor per channel, (C,), from the attention's output to the end of its branch."""
    region = traced.site.region

    def value(name: str) -> Tensor:
        part = traced.until(name)
        with evaluating(part):
            found: Tensor = part(*traced.example())
        return found

    return channel_factor(value(end), value(region.branch[-1]), "last")
