"""`linear`: one linear layer on each position in place of a branch that is no chain.

A gated feed-forward (GLU, SwiGLU) has two paths that are multiplied, so no operators of it merge;
what it computes is a function of each position alone, whose nearest linear map is found by
regression. Whole branches replaced by linear maps: ReplaceMe (Shopkhoev et al., 2025).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from updp import algebra
from updp.algebra import Operator
from updp.blocks import Site
from updp.blocks.modules import UserCodeError, call_user_code, evaluating
from updp.blocks.surgery import extract
from updp.candidates.base import Candidate, Form, blend
from updp.candidates.parts.merged_block import MergedBlock
from updp.candidates.parts.regraph import example
from updp.candidates.parts.trainable import TrainableOperator
from updp.fit import FitTask, Fitted, Regression, as_maps, clamp_of
from updp.fit.operator import skip_of
from updp.fit.ridge import Ridge
from updp.fit.rows import with_weights
from updp.recipe import CandidateSettings, FitSettings

_log = logging.getLogger(__name__)
_START = 1e-4  # strength of the ridge by which the layer starts; the fit chooses its own


@dataclass(frozen=True)
class OneLinear(Candidate):
    """A branch as one linear layer on each position, then the block's own activation."""

    kind: ClassVar[str] = "linear"

    @property
    def rank(self) -> int:
        """After what keeps more of the branch, before leaving it out."""
        return 99

    @classmethod
    def propose(
        cls, site: Site, block: nn.Module, graph: fx.Graph, settings: CandidateSettings
    ) -> Iterator[OneLinear]:
        """Yield one, where the branch works on each position alone, or for any if so set."""
        if settings.linear == "never" or not cls().fits(site):
            return
        if settings.linear == "always" or _is_local(site, block, graph):
            yield cls()

    def fits(self, site: Site) -> bool:
        """Whether the branch is no chain, and keeps the size of its map."""
        sizes = {_sizes(shape, site.layout) for shape in (site.shape_in, site.shape_out)}
        return site.branch is None and not site.paths and len(sizes) == 1

    def build(self, site: Site, block: nn.Module, graph: fx.Graph) -> OneLinearForm:
        """See `Candidate.build`."""
        return OneLinearForm(site, block, graph)


class OneLinearForm(Form):
    """A linear layer of its own, the block's skip, and the block's activation (`post`).

    It starts as the nearest linear map to the branch on the images by which it is calibrated.
    """

    def __init__(self, site: Site, block: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        region = site.region
        self.post, self._layout = site.post, site.layout
        keep = extract(block, graph, region.entry, region.exit, region.extras)
        branch = extract(block, graph, region.entry, region.branch[-1], region.extras)
        self._keep: list[Callable[..., Tensor]] = [keep]
        self._branch: list[Callable[..., Tensor]] = [branch]
        skip = skip_of(site, block, graph)
        self._skip: list[Callable[[Tensor], Tensor]] = [] if skip is None else [skip]
        self._is_identity = bool(self._skip) and not region.skip
        like = next(block.parameters(), torch.empty(0))
        inputs = site.shape_in[1 if site.layout == "first" else -1]
        zeros = torch.zeros(site.channels, inputs, *[1] * site.dims, dtype=torch.float64)
        operator = Operator(zeros, zeros.new_zeros(site.channels))
        self.linear = TrainableOperator(operator, site.layout, like)

    def forward(self, x: Tensor, *extras: Any, lam: float = 1.0) -> Tensor:
        """See `Form.forward`."""
        y: Tensor = self.linear(x)
        if (beside := self._beside(x)) is not None:
            y = y + beside
        if self.post is not None:
            y = self.post.function(y)
        # After the form, for the block may work in place on x.
        return blend(self._keep[0](x, *extras), y, lam) if lam < 1 else y

    @torch.no_grad()
    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Start the layer as the ridge regression of what the branch gives on what it reads."""
        rows, wanted = (self._rows(t) for t in (x, self._branch[0](x.clone(), *extras)))
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        prior = rows.new_zeros(1, rows.shape[1], wanted.shape[1])
        ridge = Ridge((rows.mT @ rows)[None], prior, _START)
        self.linear.set(with_weights(self.linear.operator(), ridge.solve((rows.mT @ wanted)[None])))

    def fit_tasks(self, settings: FitSettings, batches: int) -> list[FitTask]:
        """See `Form.fit_tasks`: one regression, of the layer."""
        layout, linear = self._layout, self.linear
        clamp = clamp_of(self.post.function if self.post else None, linear.weight)

        def added(x: Tensor) -> Tensor | None:
            beside = self._beside(x)
            return None if beside is None else as_maps(beside, layout)

        def target(x: Tensor, *extras: Any) -> Tensor:
            beside, y = added(x), as_maps(self._branch[0](x.clone(), *extras), layout)
            return y if beside is None else y + beside

        def inputs(x: Tensor, *extras: Any) -> tuple[Tensor, Tensor | None]:
            return as_maps(x, layout), added(x)

        def take(fitted: Fitted) -> None:
            linear.set(fitted.operator)

        regression = Regression(linear.operator(), clamp, settings, batches)
        return [FitTask("linear", regression, target, inputs, take)]

    def merged(self) -> MergedBlock:
        """See `Form.merged`: an identity skip goes into the layer."""
        operator, skip = self.linear.operator(), None
        if self._is_identity:
            device, dims = operator.weight.device, operator.dims
            identity = algebra.identity(operator.in_channels, device=device, dims=dims)
            operator = algebra.add(operator, identity)
        elif self._skip:
            skip = torch.ones_like(operator.bias)
        return MergedBlock((operator,), skip, self.post, *[self._layout] * 3)

    def _beside(self, x: Tensor) -> Tensor | None:
        """Return the skip's value; None for a block without a skip."""
        return self._skip[0](x.clone()) if self._skip else None

    def _rows(self, x: Tensor) -> Tensor:
        rows = x.movedim(1, -1) if self._layout == "first" else x
        return rows.flatten(0, -2).double()


def _sizes(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    return shape[2:] if layout == "first" else shape[1:-1]


@torch.no_grad()
def _is_local(site: Site, block: nn.Module, graph: fx.Graph) -> bool:
    """Whether the branch computes each position from that position alone, as is tried."""
    region = site.region
    part = extract(block, graph, region.entry, region.branch[-1], region.extras)
    x, *extras = example(site, block)
    other = x.clone()
    first = other.movedim(1, -1) if site.layout == "first" else other
    place = (0,) * (first.ndim - 1)
    first[place] += 1
    try:
        with evaluating(part):
            before, after = (call_user_code(part, t.clone(), *extras) for t in (x, other))
    except UserCodeError as error:
        _log.info("%s: no linear form: %s", site.name, error)
        return False
    if site.layout == "first":
        before, after = before.movedim(1, -1), after.movedim(1, -1)
    changed = (before != after).any(-1)
    return bool(changed[place]) and int(changed.sum()) == 1
