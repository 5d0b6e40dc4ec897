"""Check whether graphs that were traced at one image size also hold at a second one.

A forward may branch on sizes, and tracing fixes the branch that was taken. Only running the model
at a second size shows this.
"""

from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from updp.blocks.findings import Findings
from updp.blocks.modules import UserCodeError, try_user_code
from updp.blocks.nested import Samples, map_tensors
from updp.blocks.rewrite_check import unpruned
from updp.blocks.tracing.calls import cloned
from updp.blocks.tracing.trace import restored
from updp.blocks.values import difference

_TOLERANCE = 1e-5  # relative
_LARGE = 512**2  # number of pixels from which the second size is the smaller one
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}  # interpolation by the number of axes


class OtherSize(BaseModel, frozen=True):
    """A second size of the input, and whether model and rewritten blocks work at it."""

    size: tuple[int, ...]  # (height, width) of images; empty where no second size is known
    taken: bool  # whether the unpruned model accepts it
    # Paths of blocks that compute something else at it once rewritten; "" is the whole model.
    frozen: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the pruned model is right at other sizes, as far as is known."""
        return self.taken and not self.frozen

    def describe(self, size: tuple[int, ...]) -> str:
        """One line for people, of a model pruned at `size` (..., height, width), or nothing."""
        if not self.frozen:
            return ""
        here, there = ("x".join(map(str, s)) for s in (size[-len(self.size) :], self.size))
        names = ", ".join(name or "the model's own forward" for name in self.frozen[:3])
        more = f" and {len(self.frozen) - 3} more" if len(self.frozen) > 3 else ""
        return (
            f"images of {here} alone: at {there}, which the model takes, {names}{more} would "
            "compute something else once pruned, for what sizes decide is fixed"
        )


@torch.no_grad()
def try_other_size(model: nn.Module, findings: Findings, images: Samples) -> OtherSize:
    """Run the model at a second size, unchanged and rewritten with nothing pruned.

    Args:
        model: the model in evaluation mode; it is not changed.
        findings: its sites.
        images: (N, C, H, W) of the size at which it was traced, or sequences, or volumes. For
            other inputs no second size is known.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        return OtherSize(size=(), taken=False)
    own = images.shape[2:]
    size = tuple(2 * n if own.numel() <= _LARGE else n // 2 for n in own)
    if len(size) not in _MODES:
        return OtherSize(size=size, taken=False)
    x = torch.nn.functional.interpolate(images, size, mode=_MODES[len(size)])

    def run() -> Any:
        # State stored at this size must not reach the next run or the user's model.
        with restored(*model.modules()):
            return map_tensors(cloned, try_user_code(model, x.clone()))

    try:
        expected = run()
    except UserCodeError:
        return OtherSize(size=size, taken=False)

    def differs(found: Findings) -> bool:
        with unpruned(model, found):
            try:
                return difference(run(), expected) > _TOLERANCE
            except UserCodeError:
                return True

    frozen: tuple[str, ...] = ()
    if differs(findings):
        blocks = {site.block: None for site in findings.sites}
        alone = (b for b in blocks if differs(findings.within(b)))
        frozen = tuple(alone) or tuple(blocks)
    return OtherSize(size=size, taken=True, frozen=frozen)
