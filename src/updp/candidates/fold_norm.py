"""`fold`: a branch keeps its operators (attention), and its leading norm becomes a BatchNorm.

UPDP (arXiv 2401.06426): in a pruned block LayerNorm becomes BatchNorm and attention stays. The
BatchNorm then folds into the linear layers that read it, found by running the branch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from updp import algebra
from updp.algebra import Affine
from updp.blocks import NormStep, Site, TracedSite
from updp.blocks.copying import copy_module
from updp.blocks.folding import fold_norm
from updp.blocks.layer_calls import recorded_calls
from updp.blocks.modules import UserCodeError, call_user_code, cast, evaluating, like_of
from updp.blocks.paths import under, within
from updp.blocks.surgery import Replacement
from updp.candidates import ranks
from updp.candidates.base import Candidate
from updp.candidates.parts.channel_norm import ChannelNorm
from updp.candidates.parts.regraph import RewiredForm, emit_rewired
from updp.candidates.parts.trials import Precision, in_precision
from updp.recipe import CandidateSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldNorm(Candidate):
    """A branch with a BatchNorm in place of its norm `norm`, to be folded into the `readers`.

    Both are names of modules in the block; the readers are linear layers.
    """

    kind: ClassVar[str] = "fold"
    norm: str
    readers: tuple[str, ...]

    @property
    def label(self) -> str:
        """Label, such as `norm1>attn.qkv`."""
        return f"{self.norm}>{','.join(self.readers)}"

    @property
    def rank(self) -> int:
        """Lowest of all: only the norm changes."""
        return ranks.NOTHING

    @classmethod
    def propose(cls, traced: TracedSite, settings: CandidateSettings) -> Iterator[FoldNorm]:
        """Yield one, if a branch that cannot merge begins with a norm that linear layers read."""
        site = traced.site
        if not settings.fold_norms or site.branch is not None or site.region.add is None:
            return
        if (norm := _leading_norm(traced)) is None:
            return
        try:
            readers = _readers(traced, norm)
            trial = partial(_is_exact, traced, norm, readers)
            exact = bool(readers) and in_precision(trial)
        except UserCodeError as error:
            _log.info("%s: its norm does not fold: %s", site.name, error)
            return
        if exact:
            yield cls(norm.name, readers)

    def fits(self, site: Site) -> bool:
        """Whether the site is a residual branch that does not merge."""
        return site.branch is None and site.region.add is not None

    def build(self, traced: TracedSite) -> FoldNormForm:
        """See `Candidate.build`."""
        return FoldNormForm(traced, self)


class FoldNormForm(RewiredForm):
    """The block with a BatchNorm in place of its norm."""

    def __init__(self, traced: TracedSite, candidate: FoldNorm) -> None:
        site, block = traced.site, traced.block
        original = block.get_submodule(candidate.norm)
        weight = next(original.parameters(), like_of(block))
        axis = 1 if site.layout == "first" else -1
        norm = ChannelNorm(site.shape_in[axis], site.layout, weight.device, weight.dtype)
        part = traced.substitute({candidate.norm: norm})
        super().__init__(traced, part)
        self.norm = norm
        self._original, self._traced, self._candidate = [original], traced, candidate

    @torch.no_grad()
    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Start the BatchNorm as the least-squares line to the norm that it replaces."""
        self.norm.start(x, x, self._original[0](x))

    def merged(self) -> MergedFold:
        """See `Form.merged`."""
        return MergedFold(self._traced, self._candidate, fold_norm(self.norm))


@dataclass(frozen=True)
class MergedFold:
    """The branch without its norm, which is folded into copies of its readers as `affine`."""

    traced: TracedSite
    candidate: FoldNorm
    affine: Affine

    def replacement(self, site: Site, dtype: torch.dtype, device: torch.device) -> Replacement:
        """See `MergedForm.replacement`: the branch's own nodes, on modules with folded readers."""
        modules = _folded(self.traced, self.candidate.readers, self.affine)
        names = {target: f"{target.replace('.', '_')}_merged" for target in modules}
        added = {names[t]: m.to(device, dtype) for t, m in modules.items()}
        emit = emit_rewired(site.region, names, left_out=self.candidate.norm)
        return Replacement(site.region, emit, added)


def _leading_norm(traced: TracedSite) -> NormStep | None:
    """Find the norm (not a BatchNorm) that is the only reader of the branch's entry."""
    site = traced.site
    nodes = {n.name: n for n in traced.graph.nodes}
    entry = nodes[site.region.entry]
    reads_size = {getattr, "size", "dim"}
    users = [u for u in entry.users if u.name in site.region.branch and u.target not in reads_size]
    if len(users) != 1 or users[0].op != "call_module":
        return None
    module = traced.block.get_submodule(str(users[0].target))
    shape = getattr(module, "normalized_shape", None)
    if isinstance(module, _BatchNorm) or shape is None or len(tuple(shape)) != 1:
        return None
    return NormStep(str(users[0].target), module, site.layout, int(shape[0]))


@torch.no_grad()
def _readers(traced: TracedSite, norm: NormStep) -> tuple[str, ...]:
    """Find the linear layers whose input is the norm's output, with its pixels in any order."""
    modules = traced.block.named_modules()
    watched = {n: m for n, m in modules if isinstance(m, nn.Linear) or n == norm.name}
    part = traced.whole()
    with recorded_calls(watched) as calls:
        _run(traced.site, part)
    seen = {call.name: call.y if call.name == norm.name else call.x for call in calls}
    normed = _sorted(seen.pop(norm.name, torch.empty(0)))
    same = (n for n, x in seen.items() if x.shape[-1] == norm.channels)
    return tuple(
        n for n in same if (s := _sorted(seen[n])).shape == normed.shape and s.equal(normed)
    )


def _sorted(x: Tensor) -> Tensor:
    """Sort the values of each channel, because windows of attention only reorder pixels."""
    return x.flatten(0, -2).sort(0).values if x.ndim > 1 else x


@torch.no_grad()
def _is_exact(
    traced: TracedSite, norm: NormStep, readers: tuple[str, ...], precision: Precision
) -> bool:
    """Whether folding a random affine map into these readers computes the same as the map."""
    traced = replace(traced, block=precision.copy(traced.block))
    form = FoldNormForm(traced, FoldNorm(norm.name, readers)).eval()
    nn.init.uniform_(form.norm.weight, 0.5, 1.5)
    nn.init.normal_(form.norm.bias)
    modules = _folded(traced, readers, fold_norm(form.norm))
    modules = {name: cast(module, precision.dtype) for name, module in modules.items()}
    folded = traced.substitute({**modules, norm.name: nn.Identity()})
    a, b = (_run(traced.site, part) for part in (form._pruned[0], folded))
    if not (exact := bool((a - b).norm() <= precision.tolerance * a.norm())):
        _log.info("%s: its norm does not fold: something else reads it, too", traced.site.name)
    return exact


def _run(site: Site, part: nn.Module) -> Tensor:
    """Run `part` on an example in evaluation mode. Raises UserCodeError."""
    with evaluating(part):
        output: Tensor = call_user_code(part, *site.example(part))
    return output


def _folded(
    traced: TracedSite, readers: tuple[str, ...], affine: Affine
) -> Mapping[str, nn.Module]:
    """Copy the modules that contain a reader, by target in the graph; fold into the copies."""
    targets = [str(n.target) for n in traced.graph.nodes if n.op == "call_module"]
    modules: dict[str, nn.Module] = {}
    for reader in readers:
        target = next(t for t in targets if under(reader, t))
        if target not in modules:  # in float64, so that the caller casts once
            modules[target] = copy_module(traced.block.get_submodule(target)).double()
        linear = within(reader, modules)
        assert isinstance(linear, nn.Linear)
        operator = algebra.before(affine, algebra.from_linear(linear))
        linear.weight = nn.Parameter(operator.weight[:, :, 0, 0].to(linear.weight))
        linear.bias = nn.Parameter(operator.bias.to(linear.weight))
    return modules
