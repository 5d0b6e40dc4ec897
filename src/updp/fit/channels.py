"""Which input channels an operator can do without, when those that stay are fitted again.

Of the ridge regression with the normal matrix H and the solution W, leaving out the rows G costs
tr(W_G' ((H^-1)_GG)^-1 W_G); what is cheapest goes, the rest takes over, and again. This is the
optimal brain surgeon (Hassibi & Stork, 1993) for groups of rows, as in ZipLM (Kurtic et al.,
NeurIPS 2023).
"""

import torch
from torch import Tensor

_STEPS = 64  # at most; of a wide operator several channels go at once


def needed(inverse: Tensor, weights: Tensor, taps: int, keep: int) -> Tensor:
    """Numbers (keep,) of the channels that stay, in order.

    `inverse` (D, D) is H^-1, `weights` (D, O) the solution; D = channels * taps + 1, a channel's
    taps beside each other, the bias last.
    """
    left = torch.arange((len(weights) - 1) // taps, device=weights.device)
    step = -(-(len(left) - keep) // _STEPS)
    while len(left) > keep:
        count, rows = len(left), len(left) * taps
        blocks = inverse[:rows, :rows].reshape(count, taps, count, taps)
        own = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)  # (channels, taps, taps)
        w = weights[:rows].reshape(count, taps, -1)
        costs = (w * torch.linalg.solve(own, w)).sum((1, 2))
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
