"""The interface `Narrowing` of channels that become fewer, and the modules of a narrow form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from updp.blocks import Site
from updp.blocks.copying import copy_module
from updp.blocks.modules import like_of
from updp.blocks.paths import under
from updp.blocks.reading.composed import plain_layer
from updp.blocks.surgery import Replacement
from updp.candidates.parts.regraph import emit_rewired
from updp.fit.fit_task import FitTask
from updp.fit.operator import Function
from updp.recipe import FitSettings


class Select(nn.Module):
    """Select channels of a value that comes from outside of the branch."""

    channels: Tensor

    def __init__(self, count: int, axis: int, device: torch.device) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("channels", torch.arange(count, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the selected channels of `x`."""
        return x.index_select(self.axis, self.channels)


@dataclass(frozen=True)
class NarrowModules:
    """Modules that lose channels, by target in the graph, and selections, by name of the node.

    A selection follows a value from outside of the region that has one entry per channel.
    """

    own: Mapping[str, nn.Module]
    selects: Mapping[str, Select]

    @classmethod
    def copied(cls, block: nn.Module, narrowing: Narrowing) -> NarrowModules:
        """Copies of a block's modules with all channels; selections of the first ones."""
        device, count = like_of(block).device, next(iter(narrowing.left), 0)
        own = {target: copy_module(block.get_submodule(target)) for target in narrowing.targets}
        for path, graph in narrowing.composed.items():
            _make_plain(own, path, graph)
        return cls(
            own,
            {name: Select(count, axis, device) for name, axis in narrowing.extras.items()},
        )

    @property
    def all(self) -> list[nn.Module]:
        """All modules and selections, in an order that depends on the structure alone."""
        return [*self.own.values(), *self.selects.values()]

    def to(self, dtype: torch.dtype, device: torch.device) -> NarrowModules:
        """Copies in another precision and on another device."""
        return NarrowModules(
            {name: copy_module(module).to(device, dtype) for name, module in self.own.items()},
            {name: copy_module(select).to(device, dtype) for name, select in self.selects.items()},
        )

    @torch.no_grad()
    def copy_from(self, others: NarrowModules) -> None:
        """Copy the parameters and buffers of other modules of the same widths."""
        for own, other in zip(self.all, others.all, strict=True):
            for to, value in zip(_state(own), _state(other), strict=True):
                to.copy_(value)

    def replacement(self, site: Site) -> Replacement:
        """The nodes of the site's region, copied onto these modules."""
        names = {target: f"{target.replace('.', '_')}_narrow" for target in self.own}
        chosen = {name: f"{name}_narrow" for name in self.selects}
        if len({*names.values(), *chosen.values()}) < len(names) + len(chosen):
            names = {target: f"narrow_{number}" for number, target in enumerate(names)}
            chosen = {name: f"chosen_{number}" for number, name in enumerate(chosen)}
        added: dict[str, nn.Module] = {names[target]: m for target, m in self.own.items()}
        added |= {chosen[name]: select for name, select in self.selects.items()}
        return Replacement(site.region, emit_rewired(site.region, names, chosen=chosen), added)


class Narrowing(Protocol):
    """Channels of a block that become fewer, at one width; how they are cut, hidden and fitted.

    It must depend on the block's structure alone, because a form may be rebuilt before its
    weights are loaded.
    """

    @property
    def targets(self) -> tuple[str, ...]:
        """Modules called in the region that lose channels, or contain one that does."""

    @property
    def extras(self) -> Mapping[str, int]:
        """Nodes outside of the region with one value a channel, each with its axis."""

    @property
    def composed(self) -> Mapping[str, fx.Graph]:
        """Paths of modules that combine layers, with their graphs; they become plain layers."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of channels of each kind."""

    @property
    def left(self) -> tuple[int, ...]:
        """Number of channels left of each kind."""

    @property
    def mixed(self) -> bool:
        """Whether something mixes the channels, so that the remaining ones change their values."""

    def losing(self, modules: NarrowModules) -> Sequence[nn.Module]:
        """The modules that lose channels themselves."""

    def cut(self, modules: NarrowModules) -> None:
        """Remove all channels but those with the largest weights."""

    def hide(self, modules: NarrowModules) -> None:
        """Zero the weights that read the channels which `cut` would remove; remove none."""

    def fit_tasks(
        self,
        modules: NarrowModules,
        skip: Function | None,
        settings: FitSettings,
        batches: int,
    ) -> list[FitTask]:
        """Regression tasks of the operators that read the channels; the tasks choose and cut them.

        Args:
            modules: copies with all channels, which the tasks cut.
            skip: computes the value added to the branch's output from the site's input.
            settings: settings of the fit.
            batches: number of calibration batches.
        """


def _make_plain(copies: dict[str, nn.Module], path: str, graph: fx.Graph) -> None:
    """Replace a module that combines layers, in copies that are or contain it, by one layer."""
    target = next(t for t in copies if under(path, t))
    if path == target:
        copies[target] = plain_layer(copies[target], graph)
        return
    owner, _, name = path[len(target) + 1 :].rpartition(".")
    inside = copies[target].get_submodule(owner)
    setattr(inside, name, plain_layer(inside.get_submodule(name), graph))


def _state(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
