"""BatchNorm statistics: re-estimated for a plan, and restored afterwards.

A plan is scored on statistics of its own, since those of the shared network belong to no plan in
particular (Yu & Huang, *Universally Slimmable Networks*, 2019).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from updp.blocks.modules import evaluating


@contextmanager
def preserved(net: nn.Module) -> Iterator[None]:
    """Restore every BatchNorm's statistics at the end."""
    saved = [(buffer, buffer.clone()) for norm in norms(net) for buffer in norm.buffers(False)]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)


@torch.no_grad()
def recalibrate(
    net: nn.Module,
    batches: Sequence[Tensor],
    run: Callable[[int, Tensor], object] | None = None,
) -> None:
    """Set the running statistics to their plain average over `batches`.

    Only BatchNorms run in training mode: dropout and drop path stay off.

    Args:
        net: any network with BatchNorms.
        batches: images, each (N, C, H, W).
        run: runs the network on a batch, given its number and images; by default `net(images)`.
    """
    found = norms(net)
    momenta = [norm.momentum for norm in found]
    with evaluating(net):
        try:
            for norm in found:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # torch's way to ask for a plain, not a moving, average
            for number, images in enumerate(batches):
                net(images) if run is None else run(number, images)
        finally:
            for norm, momentum in zip(found, momenta, strict=True):
                norm.momentum = momentum


def norms(net: nn.Module) -> list[_BatchNorm]:
    """BatchNorms that track statistics."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
