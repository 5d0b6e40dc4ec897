"""The supernet: the user's model with every site switchable between `keep` and its candidates."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks import Findings, Site, TracedSite
from updp.blocks.copying import copy_module
from updp.blocks.modules import cast, evaluating, hooks, to_eval
from updp.blocks.nested import Samples, call
from updp.blocks.surgery import (
    Replacement,
    as_before,
    calling,
    restore,
    rewrite,
    surgical_state,
)
from updp.candidates import Candidate, Form, FormShape
from updp.io.files import copy_tensors
from updp.supernet.switch import KEEP, ModalForward, Switch


class Supernet(nn.Module):
    """The user's model, rewritten in place: each block with a candidate becomes switchable.

    Convolutions and linear layers are shared between a site's paths; BatchNorms are not. Where all
    parameters of a site have `requires_grad=False`, so have those of what stands in its place.
    """

    def __init__(
        self,
        model: nn.Module,
        findings: Findings,
        candidates: Mapping[str, Sequence[Candidate]],
        kept: Collection[str] = (),
    ) -> None:
        """Take over `model`, which is on its device already; `candidates` are by site.

        Sites without candidates are left as they are, except those in `kept`: these get a switch,
        too, so that their weights can be fitted and trained.
        """
        super().__init__()
        self.sites = {s.name: s for s in findings.sites if candidates.get(s.name) or s.name in kept}
        self.switches: dict[str, Switch] = {}
        self.kept: dict[str, Switch] = {}
        self._graphs = findings.graphs
        self._blocks: dict[str, list[Site]] = {}
        self._frozen = set[str]()  # sites whose parameters the user has all frozen
        for site in self.sites.values():
            self._blocks.setdefault(site.block, []).append(site)
        self._keep_unused, self._keep_count = findings.keep_unused, findings.keep_count
        self._modal = findings.modal
        self._originals = {name: model.get_submodule(name) for name in self._blocks}
        self._base = _tensors(model)
        self._own = {name: surgical_state(block) for name, block in self._originals.items()}
        for block, sites in self._blocks.items():
            self._switch(block, sites, candidates)
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the user's model under the current choices."""
        return self.model(*args, **kwargs)

    def choose(self, choices: Mapping[str, str]) -> None:
        """Let each named site run the candidate with this label, every other site its baseline.

        Raises:
            ValueError: there is no such site or candidate.
        """
        if unknown := choices.keys() - self.switches.keys():
            raise ValueError(f"no such site: {', '.join(sorted(unknown))}")
        for name, switch in self.switches.items():
            label = choices.get(name, KEEP)
            if label != KEEP and label not in switch.labels:
                raise ValueError(f"site {name} has no candidate {label!r}")
            switch.choice = label

    def set_lambda(self, lam: float, gate: str = "blend") -> None:
        """Set lambda, from 0 (baseline) to 1 (pruned), and the gate at every site."""
        for switch in self.switches.values():
            switch.lam, switch.gate = lam, gate

    def set_checkpointing(self, checkpointing: bool) -> None:
        """Set whether sites recompute their activations in the backward instead of storing them."""
        for switch in self.switches.values():
            switch.checkpointing = checkpointing

    @property
    def all_switches(self) -> dict[str, Switch]:
        """All switches by site, including sites without candidates."""
        return self.switches | self.kept

    def paths(self) -> list[nn.Module]:
        """All paths of all sites: the baseline's paths and the candidates' forms."""
        return [path for s in self.all_switches.values() for path in (s.keep, *s.forms)]

    @torch.no_grad()
    def calibrate(self, images: Samples) -> None:
        """Initialise what every candidate owns from a baseline run on `images` (N, C, H, W)."""
        self.choose({})
        calls: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
        ready = set[str]()

        def hook(name: str, switch: Switch, args: tuple[Any, ...]) -> None:
            if name in ready:  # it runs more often here than in the example that found the sites
                return
            calls[name].append((args[0].clone(), *args[1:]))
            if len(calls[name]) == self.sites[name].calls:  # a shared block runs several times
                initialise(name, switch)

        def initialise(name: str, switch: Switch) -> None:
            ready.add(name)
            (first, *extras), *rest = calls.pop(name)
            if not extras:  # extras, such as a mask, belong to one call
                alike = [call[0] for call in rest if call[0].shape == first.shape]
                first = torch.cat([first, *alike])
            for label in switch.labels:
                switch.form(label).calibrate(first, *extras)

        handles = (
            switch.register_forward_pre_hook(partial(hook, name))
            for name, switch in self.switches.items()
        )
        with evaluating(self), hooks(handles):
            call(self, images)
        for name in [*calls]:  # sites that ran less often on these images
            initialise(name, self.switches[name])

    def weights(self) -> dict[str, Tensor]:
        """All tensors by name: the user's under `model.`, the candidates' own under `site.`.

        The tensors share memory with the supernet's.
        """
        tensors: dict[str, Tensor] = {
            f"model.{name}": getattr(owner, key) for name, (owner, key) in self._base.items()
        }
        for name, form in self._forms():
            for key, tensor in form.state_dict(keep_vars=True).items():
                tensors[f"site.{name}.{key}"] = tensor
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def shapes(self) -> dict[str, FormShape]:
        """Shapes of the forms that are not factored, by `site.label`; see `Form.shape`."""
        return {name: form.shape for name, form in self._forms() if form.shape != "factored"}

    def load_weights(
        self, weights: Mapping[str, Tensor], shapes: Mapping[str, FormShape] | None = None
    ) -> None:
        """Copy `weights` into the supernet, after setting the forms' `shapes` (None: unchanged).

        Raises:
            ValueError: names, shapes or kinds of numbers differ.
        """
        if shapes is not None:
            for name, form in self._forms():
                form.set_shape(shapes.get(name, "factored"))
        copy_tensors(weights, self.weights())

    def baseline(self) -> nn.Module:
        """Copy the user's own model, without any rewriting, with the current weights."""
        switched = {name: surgical_state(block) for name, block in self._originals.items()}
        try:
            for name, state in self._own.items():
                restore(self._originals[name], state)
            return copy_module(self.model)
        finally:
            for name, state in switched.items():
                restore(self._originals[name], state)

    def merged(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Merge the current choices into a copy of the user's own model, in evaluation mode.

        All blocks keep the user's classes; a pruned block gets another forward, with the merged
        operators in place of the branch. Exact up to rounding to `dtype`.

        Raises:
            ValueError: the supernet is in training mode, where BatchNorm is no affine map (the
                trap of DingXiaoH/RepVGG issues 9, 19 and 35).
        """
        if self.training:
            raise ValueError("the supernet is in training mode: call eval() before merging it")
        model = to_eval(cast(self.baseline(), dtype))
        blocks = {name: model.get_submodule(name) for name in self._blocks}
        for name, sites in self._blocks.items():
            parts = [p for site in sites if (p := self._merged_part(site, dtype))]
            if parts:
                unused, count = name in self._keep_unused, name in self._keep_count
                rewrite(
                    blocks[name], self._graphs[name], parts, keep_unused=unused, keep_count=count
                )
        return to_eval(model)

    def merged_site(self, site: str, dtype: torch.dtype) -> nn.Module:
        """The pruned site's part of the merged model, as a module of its own."""
        part = self._merged_part(self.sites[site], dtype)
        assert part is not None, f"{site} is not pruned"
        return self.traced(site).isolate(part).eval()

    def traced(self, site: str) -> TracedSite:
        """The site in the user's own block, as it was before its rewriting, by current weights."""
        found = self.sites[site]
        block = as_before(self._originals[found.block], self._own[found.block])
        return TracedSite(found, block, self._graphs[found.block])

    def pruned_blocks(self) -> list[str]:
        """Paths of the blocks in which a site runs a candidate."""
        return [
            block
            for block, sites in self._blocks.items()
            if any(self.all_switches[s.name].choice != KEEP for s in sites)
        ]

    def _forms(self) -> Iterator[tuple[str, Form]]:
        """Every candidate's form by site and label."""
        for name, switch in self.switches.items():
            for label in switch.labels:
                yield f"{name}.{label}", switch.form(label)

    def _merged_part(self, site: Site, dtype: torch.dtype) -> Replacement | None:
        switch = self.all_switches[site.name]
        if switch.choice == KEEP:
            return None
        owner, key = next(iter(self._base.values()))
        device = getattr(owner, key).device
        part = switch.form(switch.choice).merged().replacement(site, dtype, device)
        if site.name in self._frozen:
            for value in part.added.values():
                if isinstance(value, nn.Module | nn.Parameter):
                    value.requires_grad_(False)
        return part

    def _switch(
        self, name: str, sites: list[Site], candidates: Mapping[str, Sequence[Candidate]]
    ) -> None:
        block, graph = self._originals[name], self._graphs[name]
        # Candidates that read the block later must not see the switches in it.
        before = as_before(block, self._own[name])
        parts = []
        for i, site in enumerate(sites):
            region = site.region
            keep = TracedSite(site, block, graph).whole()
            untouched = TracedSite(site, before, graph)
            offered = candidates.get(site.name, ())
            switch = Switch(keep, {c.label: c.build(untouched) for c in offered})
            if _is_frozen(keep, before):
                self._frozen.add(site.name)
                switch.forms.requires_grad_(False)
            (self.switches if offered else self.kept)[site.name] = switch
            parts.append(calling(region, f"switch{i}", switch))
        rewrite(block, graph, parts, keep_unused=True, keep_count=name in self._keep_count)
        if name in self._modal:
            switches = [self.all_switches[site.name] for site in sites]
            own = self._own[name].get("forward")
            vars(block)["forward"] = ModalForward(block, own, switches)


def _is_frozen(keep: nn.Module, block: nn.Module) -> bool:
    """Whether all parameters of a site are frozen; without any, those of its block."""
    own = [*keep.parameters()] or [*block.parameters()]
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def _tensors(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Owner and attribute of each tensor in the user's own state_dict, by its name there.

    They stay valid when modules are replaced. A tensor that several modules share has its first
    name only: safetensors refuses shared memory.
    """
    names, seen = model.state_dict().keys(), set()
    owners: dict[str, tuple[nn.Module, str]] = {}
    for path, module in model.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            name = f"{path}.{key}".lstrip(".")
            if name in names and id(tensor) not in seen:
                seen.add(id(tensor))
                owners[name] = (module, key)
    return owners
