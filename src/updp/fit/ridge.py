"""Ridge regression towards prior weights, in float64."""

import logging

import torch
from torch import Tensor

from updp.errors import UserError

_ROUNDING = 1e-9  # relative rounding error of the normal matrix, against its largest eigenvalue
_log = logging.getLogger(__name__)


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
        free: which weights may be other than 0, (g, D, O); None for all. Exact where it is the same
            for all outputs of a group; else the others are put to 0 afterwards.

    If the matrix is singular all the same, the pseudo-inverse is used, with a warning.

    Raises:
        UserError: `gram` is not finite.
    """

    def __init__(
        self,
        gram: Tensor,
        prior: Tensor,
        strength: float,
        *,
        biased: bool = True,
        free: Tensor | None = None,
    ) -> None:
        self._free = free
        diagonal = gram.diagonal(dim1=1, dim2=2)
        weight = diagonal[:, :-1].mean(1, keepdim=True) * strength  # (g, 1)
        penalty = weight.expand(-1, gram.shape[1]).clone()
        penalty[:, -1] = 0
        # A column of zeros (a dead channel) would make the matrix singular: keep the prior there.
        largest = diagonal.amax(1, keepdim=True).clamp_min(1e-12)
        penalty += largest * 1e-12
        if not biased:
            penalty[:, -1:] += largest * 1e12
        if free is not None:
            penalty += largest * 1e12 * ~free.any(2)
        normal = gram + torch.diag_embed(penalty)
        check_finite(normal)
        self._pull = penalty[:, :, None] * prior
        factor, failed = torch.linalg.cholesky_ex(normal)
        self._factor: Tensor | None = factor
        if failed.any():
            _log.warning(
                "what an operator reads is constant, or nearly so: it is fitted by the "
                "pseudo-inverse, and what its inputs do not decide stays near to zero"
            )
            self._factor, self._inverse = None, _pseudo_inverse(normal)

    def solve(self, cross: Tensor) -> Tensor:
        """The weights W (g, D, O) for `cross` = X'T, (g, D, O)."""
        if self._factor is None:
            weights = self._inverse @ (cross + self._pull)
        else:
            weights = torch.cholesky_solve(cross + self._pull, self._factor)
        return weights if self._free is None else weights * self._free

    def inverse(self) -> Tensor:
        """The inverse (g, D, D) of the normal matrix, X'X plus the penalties."""
        return self._inverse if self._factor is None else torch.cholesky_inverse(self._factor)


def check_finite(values: Tensor) -> None:
    """Raise UserError if an operator's inputs, or sums over them, are infinite or NaN."""
    if not values.isfinite().all():
        raise UserError(
            "an operator cannot be fitted, as what it reads is infinite, NaN or extremely "
            "large: are the images normalised as the model was trained with?"
        )


def _pseudo_inverse(normal: Tensor) -> Tensor:
    """Pseudo-inverse of symmetric matrices (g, D, D), scaled to a unit diagonal first."""
    scale = normal.diagonal(dim1=1, dim2=2).clamp_min(1e-300).rsqrt()
    scaled = scale[:, :, None] * normal * scale[:, None]
    # The matrix is singular up to rounding, so eigenvalues of that size count as zero.
    inverse: Tensor = torch.linalg.pinv(scaled, hermitian=True, rtol=_ROUNDING)
    return scale[:, :, None] * inverse * scale[:, None]
