"""`linear`: one linear operator in place of a branch that is no chain.

A gated feed-forward (GLU, SwiGLU, WaveNet's) multiplies two paths and other branches concatenate
them, so their operators do not merge. But such a branch computes each position from few positions
near to it, and a regression finds the nearest linear map of those: one linear layer or one
convolution. Linear maps in place of blocks: ReplaceMe (Shopkhoev et al., 2025).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from updp import algebra
from updp.algebra import Operator, padding_of
from updp.blocks import Site, TracedSite, to_layout
from updp.blocks.modules import UserCodeError, call_user_code, evaluating, like_of
from updp.candidates import ranks
from updp.candidates.base import Candidate, Form, blend
from updp.candidates.parts.merged_block import MergedBlock
from updp.candidates.parts.trainable import TrainableOperator
from updp.fit import FitTask, Fitted, Regression, as_maps, clamp_of
from updp.fit.ridge import Ridge
from updp.fit.rows import Sample, free_of, with_weights
from updp.recipe import CandidateSettings, FitSettings

_log = logging.getLogger(__name__)
_START = 1e-4  # strength of the ridge for the start; the fit chooses its own
_ROWS = 8  # rows per unknown in the regression for the start
_TAPS = 27  # maximum number: a wider kernel costs more than most branches
_TRIALS = 16  # of what the branch reads: with few channels a gate hides half of it in each


@dataclass(frozen=True)
class OneLinear(Candidate):
    """A branch as one linear operator, then the block's own activation.

    Without `kernel` it is a linear layer on each position.

    kernel:    number of taps along each axis of the map
    dilation:  distance of the taps along each axis
    reach:     positions (before, behind) that it reads along each axis, which are its padding
    """

    kind: ClassVar[str] = "linear"
    kernel: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    reach: tuple[tuple[int, int], ...] = ()

    @property
    def label(self) -> str:
        """Label, such as `linear` or `linear 3x3`."""
        return " ".join((self.kind, "x".join(map(str, self.kernel)))).strip()

    @property
    def rank(self) -> int:
        """Above that of candidates that keep more of the branch, below that of `drop`."""
        return ranks.LINEAR

    @classmethod
    def propose(cls, traced: TracedSite, settings: CandidateSettings) -> Iterator[OneLinear]:
        """Yield one if the branch reads few positions for each output, or always if so set."""
        if settings.linear == "never" or not cls().fits(traced.site):
            return
        found = _reading(traced)
        if found is not None and found.fits(traced.site) and prod(found.kernel) <= _TAPS:
            yield found
        elif settings.linear == "always":
            yield cls()

    def fits(self, site: Site) -> bool:
        """Whether the branch is no chain, and keeps the size of its map."""
        sizes, after = (_sizes(shape, site.layout) for shape in (site.shape_in, site.shape_out))
        same = sizes == after and len(self.kernel) in (0, len(sizes))
        return site.branch is None and not site.paths and same and len(self.kernel) <= 3

    def build(self, traced: TracedSite) -> OneLinearForm:
        """See `Candidate.build`."""
        site = traced.site
        layout = "first" if self.kernel else site.layout
        dims = len(site.shape_in) - 2 if layout == "first" else 2
        inputs = site.shape_in[1 if site.layout == "first" else -1]
        kernel = self.kernel or (1,) * dims
        zeros = torch.zeros(site.channels, inputs, *kernel, dtype=torch.float64)
        bias = zeros.new_zeros(site.channels)
        padding, dilation = padding_of(self.reach), self.dilation
        operator = Operator(zeros, bias, padding=padding, dilation=dilation)
        free = _taps_read(self, traced) if prod(kernel) > 1 else None
        free = None if free is None else free.expand_as(zeros).clone()
        return OneLinearForm(traced, operator, layout, free)


class OneLinearForm(Form):
    """A linear operator of its own, the block's skip, and the block's activation (`post`).

    It starts as the nearest linear map to the branch on the images by which it is calibrated.
    `layout` is the operator's, `free` which of its weights may be other than 0 (None for all).
    """

    def __init__(
        self,
        traced: TracedSite,
        operator: Operator,
        layout: str,
        free: Tensor | None,
    ) -> None:
        site = traced.site
        super().__init__()
        region = site.region
        self.post, self._outside, self._layout = site.post, site.layout, layout
        self._needs_contiguous = site.needs_contiguous(layout)
        keep = traced.whole()
        branch = traced.until(region.branch[-1])
        self._keep: list[Callable[..., Tensor]] = [keep]
        self._branch: list[Callable[..., Tensor]] = [branch]
        skip = traced.skip()
        self._skip: list[Callable[[Tensor], Tensor]] = [] if skip is None else [skip]
        self._is_identity = bool(self._skip) and not region.skip
        like = like_of(traced.block)
        self.linear = TrainableOperator(operator, layout, like, free)

    def forward(self, x: Tensor, *extras: Any, lam: float = 1.0) -> Tensor:
        """See `Form.forward`."""
        y: Tensor = to_layout(self.linear(self._enter(x)), self._layout, self._outside)
        for skip in self._skip:
            y = y + skip(x.clone())
        if self.post is not None:
            y = self.post.function(y)
        y = y.contiguous() if self._needs_contiguous else y
        # After the form, for the block may work in place on x.
        return blend(self._keep[0](x, *extras), y, lam) if lam < 1 else y

    @torch.no_grad()
    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Start the operator by ridge regression of the branch's output on the operator's input."""
        operator, maps = self.linear.operator(), self._maps(x)
        unknowns = operator.weight[0].numel() + 1
        sample = Sample.draw(len(maps), maps.shape[2:], _ROWS * unknowns, 0)
        rows = sample.patches(maps, operator).double()
        wanted = sample.of(self._maps(self._branch[0](x.clone(), *extras))).double()
        prior = rows.new_zeros(1, unknowns, wanted.shape[1])
        free = None if self.linear.free is None else free_of(operator, self.linear.free)
        ridge = Ridge(rows.mT @ rows, prior, _START, free=free)
        self.linear.set(with_weights(operator, ridge.solve(rows.mT @ wanted)))

    def fit_tasks(self, settings: FitSettings, batches: int) -> list[FitTask]:
        """See `Form.fit_tasks`: one regression, of the operator."""
        linear = self.linear
        clamp = clamp_of(self.post.function if self.post else None, linear.weight)

        def added(x: Tensor) -> Tensor | None:
            return self._maps(self._skip[0](x.clone())) if self._skip else None

        def target(x: Tensor, *extras: Any) -> Tensor:
            beside, y = added(x), self._maps(self._branch[0](x.clone(), *extras))
            return y if beside is None else y + beside

        def inputs(x: Tensor, *extras: Any) -> tuple[Tensor, Tensor | None]:
            return self._maps(x), added(x)

        def install(fitted: Fitted) -> None:
            linear.set(fitted.operator)

        operator = linear.operator()
        regression = Regression(operator, clamp, settings, batches, free=linear.free)
        return [FitTask("linear", regression, target, inputs, install)]

    def merged(self) -> MergedBlock:
        """See `Form.merged`: an identity skip goes into the operator."""
        operator, skip = self.linear.operator(), None
        if self._is_identity:
            device, dims = operator.weight.device, operator.dims
            identity = algebra.identity(operator.in_channels, device=device, dims=dims)
            operator = algebra.add(operator, identity)
        elif self._skip:
            skip = torch.ones_like(operator.bias)
        outside = self._outside
        return MergedBlock((operator,), skip, self.post, self._layout, outside, outside)

    def _enter(self, x: Tensor) -> Tensor:
        return to_layout(x, self._outside, self._layout)

    def _maps(self, x: Tensor) -> Tensor:
        return as_maps(self._enter(x), self._layout)


def _sizes(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    return shape[2:] if layout == "first" else shape[1:-1]


@torch.no_grad()
def _reading(traced: TracedSite) -> OneLinear | None:
    """The positions that the branch reads for one output, found by trials; None if unknown.

    They are unknown if a change in the middle of the map reaches the map's edge.
    """
    site, reached = traced.site, torch.empty(0)
    sizes, middle = _sizes(site.shape_in, site.layout), _middle(site)
    try:
        for reached in _reached(traced, middle):
            if reached[:, 0].any() or _meets_edge(reached[:, 1:], middle, sizes):
                return None
    except UserCodeError as error:
        _log.info("%s: no linear form: %s", site.name, error)
        return None
    if not len(reached):
        return None
    # Output o reads what lies at p: so its taps are at p - o.
    taps = [{p - int(o) for o in places} for p, places in zip(middle, reached.T[1:], strict=True)]
    if all(own == {0} for own in taps):
        return OneLinear()
    if len(sizes) == 1 and not _is_alike_elsewhere(traced, {-tap for tap in taps[0]}):
        return None
    steps = [gcd(*(tap - min(own) for tap in own)) or 1 for own in taps]
    spans = [max(own) - min(own) for own in taps]
    kernel = tuple(span // step + 1 for span, step in zip(spans, steps, strict=True))
    reach = tuple((-min(own), max(own)) for own in taps)
    return OneLinear(kernel, tuple(steps), reach)


def _meets_edge(places: Tensor, middle: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    """Whether places (M, axes), unless all are the middle, lie at the edge of the map."""
    last = places.new_tensor(sizes) - 1
    at_edge = ((places == 0) | (places == last)) & (last > 0)
    return bool(at_edge.any() and (places != places.new_tensor(middle)).any())


@torch.no_grad()
def _taps_read(candidate: OneLinear, traced: TracedSite) -> Tensor | None:
    """Which taps of its kernel the branch reads; None for all, or where that is unknown.

    A causal branch, such as a gated PixelCNN's, hides some of those between the others.
    """
    read, middle = torch.zeros(candidate.kernel, dtype=torch.bool), _middle(traced.site)
    try:
        *_, reached = _reached(traced, middle)
    except UserCodeError:
        return None
    for place in reached[:, 1:].tolist():
        axes = zip(middle, place, candidate.reach, strict=True)
        moves = [p - o + before for p, o, (before, _) in axes]
        at = [divmod(move, step) for move, step in zip(moves, candidate.dilation, strict=True)]
        inside = zip(at, candidate.kernel, strict=True)
        if all(not rest and 0 <= tap < size for (tap, rest), size in inside):
            read[tuple(tap for tap, _ in at)] = True
    return None if read.all() or not read.any() else read


def _is_alike_elsewhere(traced: TracedSite, offsets: set[int]) -> bool:
    """Whether other places of a sequence reach the same offsets as its middle.

    Places at the end of a row do not, if the sequence is a map whose rows follow one another.
    """
    (middle,), (size,) = _middle(traced.site), _sizes(traced.site.shape_in, traced.site.layout)
    # A row is no longer than half of what a kernel on the map spans.
    for place in range(middle + 1, min(size, middle + 1 + (max(offsets) - min(offsets)) // 2)):
        wanted = {offset for offset in offsets if 0 <= place + offset < size}
        try:
            found = ({int(o) - place for o in r[:, 1]} for r in _reached(traced, (place,)))
            if wanted not in found:  # makes no more trials than it takes
                return False
        except UserCodeError:
            return False
    return True


def _middle(site: Site) -> tuple[int, ...]:
    return tuple(size // 2 for size in _sizes(site.shape_in, site.layout))


def _reached(traced: TracedSite, at: tuple[int, ...]) -> Iterator[Tensor]:
    """Yield where the branch's output differs (M, 1 + axes), image first, if one place is changed.

    After one trial, after two, and so on, as a gate hides what is changed in some maps. The image
    that is changed is 0. Raises UserCodeError.
    """
    site = traced.site
    part = traced.until(site.region.branch[-1])
    like, *extras = traced.example()
    generator = torch.Generator().manual_seed(0)

    def run(x: Tensor) -> Tensor:
        with evaluating(part):
            return to_layout(call_user_code(part, x, *extras), site.layout, "last")

    reached: Tensor | bool = False
    for trial in range(_TRIALS):
        x, image = torch.randn(like.shape, generator=generator).to(like), trial % len(like)
        other = x.clone()
        pixel = to_layout(other, site.layout, "last")[(image, *at)]
        # Not the same for all channels, which a LayerNorm would take out again.
        pixel += (1, 5)[trial % 2] * torch.randn(pixel.shape, generator=generator).to(pixel)
        reached = (run(x) != run(other)).any(-1).roll(-image, 0) | reached
        yield reached.nonzero()
