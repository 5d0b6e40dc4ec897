"""BatchNorm statistics: re-estimated for a plan, and restored afterwards.

A plan is scored with its own statistics, because those of the shared network do not belong to any
particular plan (Yu & Huang, *Universally Slimmable Networks*, 2019). Several processes train with
the statistics of the whole batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from updp.blocks.modules import evaluating
from updp.blocks.nested import Samples, call
from updp.io import processes


@contextmanager
def preserved(net: nn.Module) -> Iterator[None]:
    """Context that restores every BatchNorm's statistics at its end."""
    saved = [(buffer, buffer.clone()) for norm in norms(net) for buffer in norm.buffers(False)]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)


@torch.no_grad()
def recalibrate(
    net: nn.Module,
    batches: Sequence[Samples],
    run: Callable[[int, Samples], object] | None = None,
) -> None:
    """Set the running statistics to their plain average over `batches`.

    Only BatchNorms run in training mode: dropout and drop path stay off.

    Args:
        net: any network with BatchNorms.
        batches: images, each (N, C, H, W), or other inputs.
        run: runs the network on a batch, given its number and inputs; by default `net(images)`.
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
                call(net, images) if run is None else run(number, images)
        finally:
            for norm, momentum in zip(found, momenta, strict=True):
                norm.momentum = momentum


def norms(net: nn.Module) -> list[_BatchNorm]:
    """BatchNorms that track statistics."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextmanager
def synchronised() -> Iterator[None]:
    """Context in which training BatchNorms normalise over the images of all processes.

    torch's SyncBatchNorm does so too, but only on CUDA and as another module. Here the function is
    replaced that all kinds of BatchNorm call, including those with an activation inside.
    """
    plain = F.batch_norm
    F.batch_norm = plain if processes.count() == 1 else partial(_batch_norm, plain)
    try:
        yield
    finally:
        F.batch_norm = plain


def _batch_norm(
    plain: Callable[..., Tensor],
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` with statistics over all processes, which have equally many images each."""
    if not training:
        return plain(x, running_mean, running_var, weight, bias, training, momentum, eps)
    axes, every = [axis for axis in range(x.ndim) if axis != 1], processes.count()
    values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    own = values.mean(axes)
    mean = processes.summed(own) / every
    # Variance within each process, plus the distance between the processes' means.
    spread = values.var(axes, correction=0) + (own - mean).square()
    variance = processes.summed(spread) / every
    if running_mean is not None and running_var is not None:
        count = x.numel() // x.shape[1] * every
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((variance * count / max(count - 1, 1)).to(running_var), momentum)
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    return (values * scale.view(shape) + shift.view(shape)).to(x.dtype)
