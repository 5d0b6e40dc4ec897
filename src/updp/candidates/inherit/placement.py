"""Placement of each step of a branch in a pruned form: segment, padding, border, norm."""

from dataclasses import dataclass

from updp.algebra import Padding, padding_of
from updp.blocks import (
    ActStep,
    Chain,
    LinearStep,
    NormStep,
    ScaleStep,
    ShuffleStep,
    Step,
)


@dataclass(frozen=True)
class Placed:
    """One step of the branch with its place in the pruned form.

    pad:     zeros to add before it: the padding of the whole segment, on its first step
    border:  by how much its padded input is larger than the baseline's
    norm:    number of the form's own norm that replaces it; None if none does
    """

    step: Step
    segment: int
    pad: Padding
    border: Padding
    shrunk: bool
    norm: int | None


def place(
    chain: Chain, segments: tuple[tuple[str, ...], ...], shrunk: frozenset[str], linearise: bool
) -> tuple[list[Placed], list[int]]:
    """Place each step of the chain; also return the number of channels of each new norm.

    `segments`, `shrunk` and `linearise` are as in `Inherit`.
    """
    assert [s.name for s in chain.linears] == [n for segment in segments for n in segment]
    where = {name: i for i, segment in enumerate(segments) for name in segment}
    placed: list[Placed] = []
    norms: list[int] = []
    none: Padding = (0, 0) * chain.dims
    border, current, channels = none, -1, 0
    for i, step in enumerate(chain.steps):
        pad, norm = none, None
        segment = where[step.name] if isinstance(step, LinearStep) else max(current, 0)
        # The first step of a segment; if it is a norm, it acts on the padded map.
        if segment != current:
            steps = [s for s in chain.linears if s.name in segments[segment]]
            pad = border = _padding(steps, shrunk)
            current = segment
        previous = chain.steps[i - 1] if i else None
        if isinstance(step, NormStep):
            channels = step.channels
        if isinstance(step, NormStep) or (
            linearise
            and isinstance(step, ActStep)
            and isinstance(previous, (LinearStep, ScaleStep, ShuffleStep))
            and channels
        ):
            norm = len(norms)
            norms.append(channels)
        is_shrunk = step.name in shrunk
        placed.append(Placed(step, segment, pad, border, is_shrunk, norm))
        if isinstance(step, LinearStep):
            channels = step.out_channels
            own = none if is_shrunk else step.padding
            strides = padding_of((s, s) for s in step.stride)
            border = tuple((b - o) // s for b, o, s in zip(border, own, strides, strict=True))
    return placed, norms


def _padding(steps: list[LinearStep], shrunk: frozenset[str]) -> Padding:
    """Padding of a segment's first operator: the sum of p_j * s_1 * ... * s_j-1, per side."""
    total, strides = [0] * len(steps[0].padding), [1] * len(steps[0].padding)
    for step in steps:
        if step.name not in shrunk:
            total = [t + p * s for t, p, s in zip(total, step.padding, strides, strict=True)]
        own = padding_of((s, s) for s in step.stride)
        strides = [s * o for s, o in zip(strides, own, strict=True)]
    return tuple(total)
