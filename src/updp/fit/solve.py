"""Ridge regression towards a prior, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def ridge(
    gram: Tensor, cross: Tensor, prior: Tensor, strength: float, *, biased: bool = True
) -> Tensor:
    """The weights W that minimise |X W - T|^2 + s |W - prior|^2.

    The last row (the bias) is free, or stays the prior's where there is no bias to set.

    `gram` = X'X (g, D, D), `cross` = X'T and `prior` (g, D, O), float64; s is `strength` times the
    mean of gram's diagonal, so that it does not depend on the scale of X or on the number of
    rows. Hoerl & Kennard, *Ridge Regression*, 1970, with the prior's residual as what is fitted.
    """
    weight = gram.diagonal(dim1=1, dim2=2)[:, :-1].mean(1, keepdim=True) * strength  # (g, 1)
    penalty = weight.expand(-1, gram.shape[1]).clone()
    penalty[:, -1] = 0
    # Nothing to see in a column (a dead channel): keep the prior there.
    largest = gram.diagonal(dim1=1, dim2=2).amax(1, keepdim=True).clamp_min(1e-12)
    penalty += largest * 1e-12
    if not biased:
        penalty[:, -1:] += largest * 1e12
    factor = torch.linalg.cholesky(gram + torch.diag_embed(penalty))
    return torch.cholesky_solve(cross + penalty[:, :, None] * prior, factor)
