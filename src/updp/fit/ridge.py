"""Ridge regression towards prior weights, in float64."""

import torch
from torch import Tensor

from updp.errors import UserError


class Ridge:
    """The weights W that minimise |X W - T|^2 + s |W - prior|^2, for any targets T.

    This is ridge regression (Hoerl & Kennard, 1970) of the prior's residual. Here s is `strength`
    times the mean of the diagonal of X'X, so that it depends neither on the scale of X nor on the
    number of rows.

    Args:
        gram: X'X, (g, D, D) in float64.
        prior: the prior weights, (g, D, O) in float64; the last row is the bias.
        strength: strength of the ridge; the bias has no penalty.
        biased: whether the bias may change; otherwise it stays the prior's.

    Raises:
        UserError: `gram` is not finite.
    """

    def __init__(
        self, gram: Tensor, prior: Tensor, strength: float, *, biased: bool = True
    ) -> None:
        diagonal = gram.diagonal(dim1=1, dim2=2)
        weight = diagonal[:, :-1].mean(1, keepdim=True) * strength  # (g, 1)
        penalty = weight.expand(-1, gram.shape[1]).clone()
        penalty[:, -1] = 0
        # A column of zeros (a dead channel) would make the matrix singular: keep the prior there.
        largest = diagonal.amax(1, keepdim=True).clamp_min(1e-12)
        penalty += largest * 1e-12
        if not biased:
            penalty[:, -1:] += largest * 1e12
        self._factor, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(penalty))
        if failed.any():
            raise UserError(
                "an operator cannot be fitted, as what it reads is infinite, NaN or extremely "
                "large: are the images normalised as the model was trained with?"
            )
        self._pull = penalty[:, :, None] * prior

    def solve(self, cross: Tensor) -> Tensor:
        """The weights W (g, D, O) for `cross` = X'T, (g, D, O)."""
        return torch.cholesky_solve(cross + self._pull, self._factor)

    def inverse(self) -> Tensor:
        """The inverse (g, D, D) of the normal matrix, X'X plus the penalties."""
        return torch.cholesky_inverse(self._factor)
