"""BatchNorm statistics: estimated anew for a plan, and put back afterwards.

Every candidate plan is scored after its statistics are recalibrated on a copy, for those of the
shared network belong to no plan in particular (Yu & Huang, *Universally Slimmable Networks*, 2019).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from updp.blocks.modules import evaluating


@contextmanager
def preserved(net: nn.Module) -> Iterator[None]:
    """Put every BatchNorm's statistics back at the end."""
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
    """Set statistics to the mean over `batches`, each (N, C, H, W), of what each norm sees.

    Only BatchNorms run in training mode: dropout and drop path stay off. `run` runs the network on
    the batch of a number, when it is not called itself.
    """
    found = norms(net)
    momenta = [norm.momentum for norm in found]
    with evaluating(net):
        try:
            for norm in found:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # a plain average over the batches
            for number, images in enumerate(batches):
                net(images) if run is None else run(number, images)
        finally:
            for norm, momentum in zip(found, momenta, strict=True):
                norm.momentum = momentum


def norms(net: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms that have statistics."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
