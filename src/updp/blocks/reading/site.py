"""A site: a branch of a block that may be replaced, as it was read."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from updp.blocks.modules import like_of, seeded_input
from updp.blocks.nested import is_float_tensor
from updp.blocks.reading.scaling import NotScalable, scaled, scaled_sizes
from updp.blocks.reading.steps import ActStep, Chain
from updp.blocks.tracing.region import Region


@dataclass(frozen=True)
class Site:
    """A branch that may be replaced.

    name:       module path, and `:module` with its largest module if the block has several sites
    block:      module path of its block
    kind:       class name of its block
    region:     its nodes in the block's graph; `region.add` is None if there is no skip
    branch:     the branch as a chain; None if it is not one: then it can be dropped, not merged
    skip:       the skip as a chain, empty for the identity; None if it is not one and stays as is
    post:       the activation at the end of the block, or None
    shape_in:   shape of the tensor at the entry, in the example
    shape_out:  shape of the tensor at the exit, in the example
    layout:     layout of the tensor at the exit: first | last
    extras:     values of `region.extras` in the example
    calls:      number of calls of the block in one forward of the model
    work:       the same, with each call weighted by its size relative to the first call's
    why:        reason why `branch` is None
    paths:      parallel chains whose sum is the region, if it is linear already
    samples:    number of samples in the example
    larger:     shape of the entry, and values of the extras, with one sample more
    more_calls: number of calls that one sample more adds, where each has its own
    contiguous_in, contiguous_out: whether the tensors at the entry and the exit are contiguous
    """

    name: str
    block: str
    kind: str
    region: Region
    branch: Chain | None
    skip: Chain | None
    post: ActStep | None
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    layout: str
    extras: tuple[Any, ...] = ()
    calls: int = 1
    work: float = 1.0
    why: str = ""
    paths: tuple[Chain, ...] = ()
    samples: int = 1
    larger: tuple[Any, ...] = ()
    more_calls: int = 0
    contiguous_in: bool = True
    contiguous_out: bool = False

    @property
    def chain(self) -> Chain:
        """The branch, for a site where it is known to be a chain."""
        assert self.branch is not None, f"{self.name} is no chain: {self.why}"
        return self.branch

    @property
    def channels(self) -> int:
        """Number of channels at the exit."""
        return self.shape_out[1 if self.layout == "first" else -1]

    @property
    def dims(self) -> int:
        """Number of axes of an operator on maps at the exit, as made by `fit.as_maps`."""
        return len(self.shape_out) - 2 if self.layout == "first" else 2

    def needs_contiguous(self, layout: str) -> bool:
        """Whether what computes in `layout` must make its output contiguous, as the block's is.

        A permuted tensor, or one that follows another's strides, would fail in a later `view`.
        """
        own = layout == self.layout and self.contiguous_in
        return self.contiguous_out and not own and len(self.shape_out) > 2

    def example(self, part: nn.Module) -> tuple[Any, ...]:
        """Seeded random values for the entry, and the extras, in the dtype of `part`."""
        x = seeded_input(self.shape_in, like_of(part))
        return (x, *(extra.to(x) if is_float_tensor(extra) else extra for extra in self.extras))

    def shape_for(self, samples: int) -> tuple[int, ...]:
        """Shape of the entry for `samples` samples. Raises NotScalable if it is unknown."""
        if not self.larger:
            raise NotScalable("the model calls it for some numbers of samples only")
        return scaled_sizes(self.shape_in, self.larger[0], samples - self.samples)

    def work_for(self, samples: int) -> float:
        """Work of a forward on `samples` samples, in units of the block's first call."""
        calls = self.calls + self.more_calls * (samples - self.samples)
        return self.work * max(calls, 1) / self.calls

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of the entry without the axis that grows with the samples (else the first axis)."""
        grown = (a != b for a, b in zip(self.shape_in, self.larger[0], strict=True))
        axis = next((axis for axis, grows in enumerate(grown) if grows), 0)
        return (*self.shape_in[:axis], *self.shape_in[axis + 1 :])

    def inputs_for(self, samples: int, device: torch.device) -> tuple[Any, ...]:
        """Seeded random values for the entry, and the extras, for a batch of `samples` samples.

        Raises NotScalable if they are unknown.
        """
        x = seeded_input(self.shape_for(samples)).to(device)
        return (x, *scaled(self.extras, self.larger[1:], samples - self.samples))
