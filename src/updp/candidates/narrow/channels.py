"""The inner channels of a branch: those between one linear operator and the next.

Every step between the two acts on each channel alone (BatchNorms, activations, depthwise
convolutions) or on groups of channels (grouped convolutions), or is a norm or a gate that also
works on fewer channels. So channels can be removed without changing anything outside.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import lcm

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from updp.blocks import ActStep, Chain, LinearStep, NormStep, ScaleStep, Step
from updp.blocks.paths import within
from updp.blocks.reading.composed import ComposedStep
from updp.blocks.surgery import substitute
from updp.blocks.tracing.region import whole_region
from updp.candidates.narrow.slicing import (
    can_cut_gate,
    cut_gate,
    cut_group_norm,
    cut_inputs,
    cut_outputs,
    has_state,
)
from updp.candidates.parts.widths import share_of
from updp.fit.channels import entries_of


@dataclass(frozen=True)
class InnerChannels:
    """Inner channels, given by the indices of their producer and consumer in the chain's steps.

    `gated`: a norm or a gate mixes them, so that the remaining ones change their values. `unit`
    is the number of adjoining channels that stay or go together: a group of a GroupNorm or a
    convolution.
    """

    producer: int
    consumer: int
    gated: bool = False
    unit: int = 1

    def count(self, chain: Chain) -> int:
        """Return the number of channels."""
        step = chain.steps[self.producer]
        assert isinstance(step, LinearStep)
        return step.out_channels

    def left(self, chain: Chain, share: float) -> int:
        """Return the number of channels for a share."""
        return share_of(self.count(chain), share, self.unit)

    @torch.no_grad()
    def cut(self, chain: Chain, channels: Tensor) -> None:
        """Remove all channels but `channels` (indices) from the chain's modules."""
        count, consumer = self.count(chain), module_of(chain.steps[self.consumer])
        assert consumer is not None
        cut_inputs(consumer, channels)
        for step in chain.steps[self.producer : self.consumer]:
            if (module := module_of(step)) is None:
                continue
            if isinstance(module, nn.GroupNorm):
                cut_group_norm(module, channels)
            elif _is_gate(step):
                cut_gate(module, channels, count)
            elif has_state(module):
                cut_outputs(module, channels)

    @torch.no_grad()
    def hide(self, chain: Chain, channels: Tensor) -> None:
        """Zero the consumer's weights for all channels but `channels` (indices); cut none."""
        consumer = module_of(chain.steps[self.consumer])
        assert consumer is not None
        weight = consumer.get_parameter("weight")
        hidden = torch.ones(weight.shape[1], dtype=torch.bool)
        hidden[channels.cpu()] = False
        weight[:, hidden.to(weight.device)] = 0

    @torch.no_grad()
    def largest(self, chain: Chain, count: int) -> Tensor:
        """Return the indices of the `count` channels with the largest weights, in order.

        Their size is the norm of a channel's weights in the producer, times that in the consumer.
        """
        producer, consumer = chain.steps[self.producer], chain.steps[self.consumer]
        assert isinstance(producer, LinearStep)
        assert isinstance(consumer, LinearStep)
        written = producer.weight.flatten(1).norm(dim=1)
        read = consumer.weight.movedim(1, 0).flatten(1).norm(dim=1)
        sizes: Tensor = (written * read).reshape(-1, self.unit).sum(1)
        units = sizes.argsort(descending=True, stable=True)[: count // self.unit].sort().values
        return entries_of(units, self.unit)


def on_modules(chain: Chain, modules: Mapping[str, nn.Module]) -> Chain:
    """Return the chain with its steps moved to the modules of these names, or inside them."""
    return replace(chain, steps=tuple(_on(step, modules) for step in chain.steps))


def inner_channels(chain: Chain) -> Iterator[InnerChannels]:
    """Yield the inner channels of a chain, in order."""
    start: int | None = None
    count, gated, unit = 0, False, 1
    for place, step in enumerate(chain.steps):
        if isinstance(step, LinearStep) and _within_groups(step):
            unit = lcm(unit, step.out_channels // step.groups)
        elif isinstance(step, LinearStep):
            plain = step.groups == 1 and (not step.derived or isinstance(step, ComposedStep))
            if start is not None and plain:
                yield InnerChannels(start, place, gated, unit)
            start, count, gated, unit = place if plain else None, step.out_channels, False, 1
        elif start is not None and isinstance(norm := module_of(step), nn.GroupNorm):
            if norm.num_groups == 1:
                gated = True
            else:
                unit = lcm(unit, count // norm.num_groups)
        elif start is not None and _is_gate(step):
            assert isinstance(step, NormStep)
            gated = True
            if not can_cut_gate(step.module, count, step.layout):
                start = None
        elif not _acts_on_each_channel(step):
            start = None


def _within_groups(step: LinearStep) -> bool:
    """Whether each group writes as many channels as it reads, as in depthwise convolutions."""
    return step.groups > 1 and not step.derived and step.in_channels == step.out_channels


def _is_gate(step: Step) -> bool:
    return isinstance(step, NormStep) and not isinstance(step.module, _BatchNorm)


def _acts_on_each_channel(step: Step) -> bool:
    if isinstance(step, NormStep):
        return isinstance(step.module, _BatchNorm) and step.module.running_var is not None
    if isinstance(step, ActStep):
        function = step.function
        stateless = not isinstance(function, nn.Module) or not has_state(function)
        return stateless or isinstance(function, nn.PReLU)
    return isinstance(step, ScaleStep) and step.parameter.numel() == 1


def module_of(step: Step) -> nn.Module | None:
    """Return the module that a step runs; None if it is a function or a parameter."""
    own = step.function if isinstance(step, ActStep) else getattr(step, "module", None)
    return own if isinstance(own, nn.Module) else None


def names_of(step: Step) -> list[str]:
    """Names of the modules that a step runs: several if the step is a part of a graph."""
    if isinstance(step, NormStep) and isinstance(step.module, fx.GraphModule):
        called = (n for n in step.module.graph.nodes if n.op == "call_module")
        return [f"{step.prefix}{node.target}" for node in called]
    return [step.name]


def modules_of(chain: Chain) -> Iterator[nn.Module]:
    """Yield the modules that the steps of a chain run, including those in steps that are graphs."""
    for step in chain.steps:
        if isinstance(part := module_of(step), fx.GraphModule):
            called = (n for n in part.graph.nodes if n.op == "call_module")
            yield from (part.get_submodule(str(node.target)) for node in called)
        elif part is not None:
            yield part


def _on(step: Step, modules: Mapping[str, nn.Module]) -> Step:
    if isinstance(step, NormStep) and isinstance(part := step.module, fx.GraphModule):
        found = {name: within(name, modules) for name in names_of(step)}
        added = {n.removeprefix(step.prefix): m for n, m in found.items() if m is not None}
        region = whole_region(part.graph)
        assert region is not None  # it was extracted from a graph, from one node to another
        return replace(step, module=substitute(part, part.graph, region, added))
    if module_of(step) is None or isinstance(module_of(step), fx.GraphModule):
        return step  # the step's name is not that of a module
    if (own := within(step.name, modules)) is None:
        return step
    if isinstance(step, ActStep):
        return replace(step, function=own)
    if isinstance(step, ComposedStep):  # see `Narrowing.composed`
        sizes = step.stride, step.padding, step.dilation
        return LinearStep(step.name, own, *sizes, before=step.before, behind=step.behind)
    if isinstance(step, LinearStep):
        return replace(step, module=own, groups=getattr(own, "groups", 1))
    return replace(step, module=own)  # type: ignore[type-var,arg-type]
