"""Select the input channels of an operator by the optimal brain surgeon.

In the ridge regression with normal matrix H and solution W, removing the rows G and fitting the
others again raises the loss by tr(W_G' ((H^-1)_GG)^-1 W_G). The cheapest channel is removed, W and
H^-1 are updated, and so on (Hassibi & Stork, 1993; for groups of rows, ZipLM, Kurtic et al.,
NeurIPS 2023).
"""

import torch
from torch import Tensor

_STEPS = 64  # maximum number of updates: a wide operator loses several channels at once


def entries_of(units: Tensor, size: int) -> Tensor:
    """Indices (len(units) * size,) of the channels, or rows, of units of `size` adjoining ones."""
    indices: Tensor = units[:, None] * size + torch.arange(size, device=units.device)
    return indices.flatten()


def select_channels(inverse: Tensor, weights: Tensor, taps: int, keep: int) -> Tensor:
    """Indices (keep,) of the channels that stay, ascending.

    Args:
        inverse: H^-1, (D, D) with D = channels * taps + 1; taps of a channel adjoin, bias last.
        weights: the solution W, (D, O).
        taps: elements of the kernel, kh * kw.
        keep: number of channels that stay.
    """
    left = torch.arange((len(weights) - 1) // taps, device=weights.device)
    step = -(-(len(left) - keep) // _STEPS)
    while len(left) > keep:
        count, rows = len(left), len(left) * taps
        blocks = inverse[:rows, :rows].reshape(count, taps, count, taps)
        own = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)  # (channels, taps, taps)
        w = weights[:rows].reshape(count, taps, -1)
        solved = w / own if taps == 1 else torch.linalg.solve(own, w)  # many small solves are slow
        costs = (w * solved).sum((1, 2))
        out = costs.argsort()[: min(step, count - keep)]
        stays = torch.ones(count, dtype=torch.bool, device=left.device)
        stays[out] = False
        row_stays = torch.cat([stays.repeat_interleave(taps), stays.new_ones(1)])
        gone = inverse[~row_stays]  # (r, D)
        factor = torch.linalg.solve(gone[:, ~row_stays], gone[:, row_stays]).mT  # (D - r, r)
        weights = weights[row_stays] - factor @ weights[~row_stays]
        inverse = inverse[row_stays][:, row_stays] - factor @ gone[:, row_stays]
        left = left[stays]
    return left
