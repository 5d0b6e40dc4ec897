"""Ridge regression towards a prior, in float64."""

import torch
from torch import Tensor


class Ridge:
    """The weights W that minimise |X W - T|^2 + s |W - prior|^2, for any targets T.

    `gram` = X'X (g, D, D) and `prior` (g, D, O) are float64; s is `strength` times the mean of
    gram's diagonal, so that it does not depend on the scale of X or on the number of rows. The
    last row (the bias) is free, or stays the prior's where there is none to set (not `biased`).
    Hoerl & Kennard, *Ridge Regression*, 1970, with the prior's residual as what is fitted.
    """

    def __init__(
        self, gram: Tensor, prior: Tensor, strength: float, *, biased: bool = True
    ) -> None:
        diagonal = gram.diagonal(dim1=1, dim2=2)
        weight = diagonal[:, :-1].mean(1, keepdim=True) * strength  # (g, 1)
        penalty = weight.expand(-1, gram.shape[1]).clone()
        penalty[:, -1] = 0
        # Nothing to see in a column (a dead channel): keep the prior there.
        largest = diagonal.amax(1, keepdim=True).clamp_min(1e-12)
        penalty += largest * 1e-12
        if not biased:
            penalty[:, -1:] += largest * 1e12
        self._factor = torch.linalg.cholesky(gram + torch.diag_embed(penalty))
        self._pull = penalty[:, :, None] * prior

    def solve(self, cross: Tensor) -> Tensor:
        """W (g, D, O) for `cross` = X'T (g, D, O)."""
        return torch.cholesky_solve(cross + self._pull, self._factor)

    def inverse(self) -> Tensor:
        """Of the normal matrix, (g, D, D)."""
        return torch.cholesky_inverse(self._factor)
