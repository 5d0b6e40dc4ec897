"""`inherit`: the paper's candidate, a linear branch that starts from the baseline's weights.

UPDP (arXiv 2401.06426), *Progressive subnet training* and *Subnet merging*: activations become
identity, LayerNorm and GroupNorm become BatchNorm, a BatchNorm and an activation end the block.
Beyond the paper (docs/concepts/blocks.md): the chain may be cut into segments, each merged into
one operator, and a convolution may be shrunk to its centre tap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, pairwise, product
from math import gcd, prod
from typing import ClassVar

from torch import nn

from updp.algebra import can_shrink, kept_groups, sides_of
from updp.blocks import ActStep, Chain, LinearStep, ShuffleStep, Site, TracedSite
from updp.candidates import ranks
from updp.candidates.base import Candidate
from updp.candidates.inherit.branch import LinearBranch
from updp.candidates.inherit.form import InheritForm
from updp.recipe import CandidateSettings


@dataclass(frozen=True)
class Inherit(Candidate):
    """A linear branch that merges to one operator per segment.

    segments:        names of the branch's linear operators, grouped by merged operator
    shrunk:          names of the operators whose kernel is shrunk to its centre tap
    end_activation:  whether a block without an end activation gets one
    linearise:       whether a removed activation without a norm before it leaves a BatchNorm
    """

    kind: ClassVar[str] = "inherit"
    segments: tuple[tuple[str, ...], ...]
    shrunk: tuple[str, ...] = ()
    end_activation: bool = True
    linearise: bool = False

    @property
    def label(self) -> str:
        """Label, such as `conv1+conv2(1x1)` or `conv_dw | mlp.fc1+mlp.fc2`."""
        return " | ".join(
            "+".join(f"{n}(1x1)" if n in self.shrunk else n for n in segment)
            for segment in self.segments
        )

    @property
    def rank(self) -> int:
        """The number of shrunk kernels, plus 1."""
        return ranks.MERGED + len(self.shrunk)

    @classmethod
    def propose(cls, traced: TracedSite, settings: CandidateSettings) -> Iterator[Inherit]:
        """Yield the two smallest for each number of shrunk kernels, with at most the block's MACs.

        Timing all cuts would take minutes, and a larger form may win in one run and lose in the
        next. Of forms that merge to the same size only the first is used, for the same reason.
        """
        site = traced.site
        ends, linear = settings.end_activation, settings.linearise
        found = inherit_cuts(site, end_activation=ends, linearise=linear)
        limit = baseline_macs(site) if site.branch is not None else 0
        few: list[Inherit] = []
        for _, group in groupby(found, key=lambda c: c.rank):
            sizes = {(c.macs(site), len(c.segments)): c for c in reversed(list(group))}
            few += sorted(sizes.values(), key=lambda c: c.macs(site))[:2]
        yield from [c for c in few if c.macs(site) <= limit][: settings.timed]

    def fits(self, site: Site) -> bool:
        """Whether the segments hold the site's operators in order, and `shrunk` can be shrunk."""
        return (
            site.branch is not None
            and [n for segment in self.segments for n in segment]
            == [step.name for step in site.chain.linears]
            and all(n in _shrinkable(site) for n in self.shrunk)
        )

    def build(self, traced: TracedSite) -> InheritForm:
        """See `Candidate.build`."""
        site = traced.site
        activation = site.post
        if activation is None and self.end_activation:
            channels = site.chain.linears[-1].out_channels
            fitting = [s for s in site.chain.steps if isinstance(s, ActStep) and _fits(s, channels)]
            activation = fitting[-1] if fitting else None
        branch = LinearBranch(site.chain, self.segments, self.shrunk, self.linearise)
        return InheritForm(traced, branch, activation)

    def macs(self, site: Site) -> int:
        """Count the multiply-accumulates of the merged branch for one image, without its skip."""
        linears = {s.name: s for s in site.chain.linears}
        total = 0
        sizes = _sizes(site)
        for segment in self.segments:
            steps = [linears[name] for name in segment]
            wide = [s for s in steps if s.name not in self.shrunk]
            along = [_along(size, axis, wide) for axis, size in enumerate(sizes)]
            sizes, taps = [size for size, _ in along], [count for _, count in along]
            groups = _groups(site.chain, steps)
            inputs = steps[0].in_channels // groups
            total += prod(sizes) * steps[-1].out_channels * inputs * prod(taps)
        return total


def inherit_cuts(
    site: Site, *, end_activation: bool = True, linearise: bool = False
) -> Iterator[Inherit]:
    """Yield every cut of the chain in which operators merge, least shrunk first, then smallest.

    A convolution is shrunk only where it merges with another operator, and never where that
    would change the output's size or leave a stride without its kernel.
    """
    if site.branch is None:
        return
    shrinkable = _shrinkable(site)
    found = [
        Inherit(segments, shrunk, end_activation, linearise)
        for segments in _cuts(tuple(s.name for s in site.chain.linears))
        for shrunk in _subsets(shrinkable)
        if all(_helps(name, segments) for name in shrunk)
    ]
    yield from sorted(found, key=lambda c: (len(c.shrunk), c.macs(site)))


def baseline_macs(site: Site) -> int:
    """Count the multiply-accumulates of the branch's own linear operators for one image."""
    alone = Inherit(tuple((s.name,) for s in site.chain.linears))
    return alone.macs(site)


def _fits(step: ActStep, channels: int) -> bool:
    """Whether an activation works on `channels` channels: a PReLU has a parameter for each."""
    function = step.function
    own = function.parameters() if isinstance(function, nn.Module) else ()
    return all(p.numel() in (1, channels) for p in own)


def _along(size: int, axis: int, steps: list[LinearStep]) -> tuple[int, int]:
    """Return the merged operator's output size and number of taps along one axis.

    Tap distances and their common step are as in `algebra.compose`, without composing kernels.
    """
    stride, distances, reach = 1, [0], 0
    for step in steps:
        kernel, dilation = step.kernel[axis], step.dilation[axis]
        padded = size + sum(sides_of(step.padding)[axis])
        size = (padded - dilation * (kernel - 1) - 1) // step.stride[axis] + 1
        if kernel > 1:
            distances.append(dilation * stride)
            reach += (kernel - 1) * dilation * stride
        stride *= step.stride[axis]
    return size, reach // (gcd(*distances) or 1) + 1


def _groups(chain: Chain, segment: Sequence[LinearStep]) -> int:
    """Return the groups of a segment's merged operator; a channel shuffle may reduce them."""
    places = [i for i, step in enumerate(chain.steps) if isinstance(step, LinearStep)]
    start, last = (chain.steps.index(step) for step in (segment[0], segment[-1]))
    end = next((place for place in places if place > last), len(chain.steps))
    groups = segment[0].in_channels
    for step in chain.steps[0 if start == places[0] else start : end]:
        if isinstance(step, LinearStep):
            groups = gcd(groups, step.groups)
        elif isinstance(step, ShuffleStep):
            groups = kept_groups(groups, step.order)
    return groups


def _shrinkable(site: Site) -> list[str]:
    # Not if it has a stride: a 1x1 would skip pixels that the kernel reads.
    return [
        s.name
        for s in site.chain.linears
        if {*s.kernel} != {1} == {*s.stride} and can_shrink(s.kernel, s.padding, s.dilation)
    ]


def _helps(name: str, segments: tuple[tuple[str, ...], ...]) -> bool:
    """Whether shrinking makes a merged kernel smaller: nothing merges in a segment of one."""
    return all(len(s) > 1 for s in segments if name in s)


def _cuts(names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ...]]:
    for choice in product((False, True), repeat=len(names) - 1):
        if all(choice):
            continue  # every operator alone: nothing merges
        cuts = [place for place, cut in enumerate(choice, 1) if cut]
        yield tuple(names[a:b] for a, b in pairwise([0, *cuts, len(names)]))


def _subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    # Later operators first: in measurements it was best to shrink the second kernel.
    for count in range(len(names) + 1):
        yield from combinations(reversed(names), count)


def _sizes(site: Site) -> list[int]:
    """Return the sizes of the branch's input along its operators' axes; tokens are one column."""
    inner = site.shape_in[2:] if site.chain.layout_in == "first" else site.shape_in[1:-1]
    return [*inner] if len(inner) == site.chain.dims else [prod(inner), 1]
