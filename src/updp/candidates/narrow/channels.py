"""The inner channels of a branch: those that one operator makes and one other reads.

Between the two everything is done to each channel alone (BatchNorms, activations, depthwise
convolutions) or by a norm or a gate that works on fewer channels, too. So channels can go without
anybody outside noticing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import NoneType

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from updp.blocks import ActStep, Chain, LinearStep, NormStep, Step
from updp.candidates.narrow.slicing import (
    can_cut_gate,
    cut_gate,
    cut_inputs,
    cut_outputs,
    has_state,
)

_MULTIPLE = 8


@dataclass(frozen=True)
class Inner:
    """Inner channels: the places of their producer and of their consumer among a chain's steps.

    `gated` are those that a norm or a gate mixes: what is left then has other values.
    """

    producer: int
    consumer: int
    gated: bool = False

    def count(self, chain: Chain) -> int:
        """How many channels there are."""
        step = chain.steps[self.producer]
        assert isinstance(step, LinearStep)
        return step.out_channels

    def left(self, chain: Chain, share: float) -> int:
        """How many a share of them is; of many a multiple, for a runtime computes some at once."""
        count = self.count(chain)
        unit = _MULTIPLE if count >= 2 * _MULTIPLE else 1
        return min(count, max(unit, round(count * share / unit) * unit))

    @torch.no_grad()
    def cut(self, chain: Chain, channels: Tensor) -> None:
        """Take all others than `channels` (their numbers) out of the chain's modules."""
        count, consumer = self.count(chain), module_of(chain.steps[self.consumer])
        assert isinstance(consumer, (nn.Conv2d, nn.Linear))
        cut_inputs(consumer, channels)
        for step in chain.steps[self.producer : self.consumer]:
            if (module := module_of(step)) is None:
                continue
            if _is_gate(step):
                cut_gate(module, channels, count)
            elif has_state(module):
                cut_outputs(module, channels)

    @torch.no_grad()
    def hide(self, chain: Chain, channels: Tensor) -> None:
        """Let the consumer read nothing of all others, which stay."""
        consumer = module_of(chain.steps[self.consumer])
        assert isinstance(consumer, (nn.Conv2d, nn.Linear))
        hidden = torch.ones(consumer.weight.shape[1], dtype=torch.bool)
        hidden[channels.cpu()] = False
        consumer.weight[:, hidden.to(consumer.weight.device)] = 0

    @torch.no_grad()
    def largest(self, chain: Chain, count: int) -> Tensor:
        """Numbers of the channels of the largest weights; a guess that needs no image."""
        producer, consumer = chain.steps[self.producer], chain.steps[self.consumer]
        assert isinstance(producer, LinearStep)
        assert isinstance(consumer, LinearStep)
        sizes = producer.weight.flatten(1).norm(dim=1) * consumer.weight.movedim(1, 0).flatten(
            1
        ).norm(dim=1)
        return sizes.argsort(descending=True, stable=True)[:count].sort().values


def inner_channels(chain: Chain) -> tuple[Inner, ...]:
    """All that a chain has, in order."""
    return tuple(_found(chain))


def on_modules(chain: Chain, modules: Mapping[str, nn.Module]) -> Chain:
    """The chain with steps that are within `modules` (by name) on those."""
    return replace(chain, steps=tuple(_on(step, modules) for step in chain.steps))


def _found(chain: Chain) -> Iterator[Inner]:
    start: int | None = None
    count, gated = 0, False
    for place, step in enumerate(chain.steps):
        if isinstance(step, LinearStep) and not step.depthwise:
            plain = step.groups == 1 and _is_plain(step)
            if start is not None and plain:
                yield Inner(start, place, gated)
            start, count, gated = place if plain else None, step.out_channels, False
        elif start is not None and _is_gate(step):
            assert isinstance(step, NormStep)
            gated = True
            if not can_cut_gate(step.module, count, step.layout):
                start = None
        elif not _acts_on_each_channel(step):
            start = None


def _is_gate(step: Step) -> bool:
    return isinstance(step, NormStep) and not isinstance(step.module, _BatchNorm)


def _acts_on_each_channel(step: Step) -> bool:
    if isinstance(step, LinearStep):
        return step.depthwise and _is_plain(step) and step.out_channels == step.groups
    if isinstance(step, NormStep):
        return isinstance(step.module, _BatchNorm) and step.module.running_var is not None
    if isinstance(step, ActStep):
        function = step.function
        stateless = not isinstance(function, nn.Module) or not has_state(function)
        return stateless or isinstance(function, nn.PReLU)
    return step.parameter.numel() == 1


def _is_plain(step: LinearStep) -> bool:
    """Whether its weight is a parameter of its own, which can be cut."""
    return not step.derived and "weight" in dict(step.module.named_parameters(recurse=False))


def module_of(step: Step) -> nn.Module | None:
    """The module that a step is, if it is one."""
    own = step.function if isinstance(step, ActStep) else getattr(step, "module", None)
    return own if isinstance(own, nn.Module) else None


def _on(step: Step, modules: Mapping[str, nn.Module]) -> Step:
    if isinstance(module_of(step), (fx.GraphModule, NoneType)):  # its name is no module's
        return step
    for name, module in modules.items():
        if step.name == name or step.name.startswith(f"{name}."):
            own = module.get_submodule(step.name[len(name) + 1 :])
            if isinstance(step, ActStep):
                return replace(step, function=own)
            if isinstance(step, LinearStep):
                return replace(step, module=own, groups=getattr(own, "groups", 1))
            return replace(step, module=own)  # type: ignore[type-var,arg-type]
    return step
