"""End activations that clamp: below a ReLU, any negative value is as good as the target."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from updp.blocks.modules import UserCodeError, call_user_code

_FAR = 1e4  # an input at which a clamp has reached its bound


@dataclass(frozen=True)
class Clamp:
    """`min(max(x, low), high)`: ReLU is (0, inf), ReLU6 (0, 6), the identity (-inf, inf)."""

    low: float = -torch.inf
    high: float = torch.inf

    def __call__(self, x: Tensor) -> Tensor:
        """Clamp each element."""
        return x.clamp(self.low, self.high)

    @property
    def is_identity(self) -> bool:
        """Whether there are no bounds."""
        return self == Clamp()

    def nearest(self, target: Tensor, value: Tensor) -> Tensor:
        """The point nearest to `value` among those with the clamped value of `target`.

        Its squared distance bounds the clamped error from above and equals it at `value`, so that
        fitting to it never raises that error (majorisation: Hunter & Lange, *A Tutorial on MM
        Algorithms*, 2004).
        """
        low, high = target <= self.low, target >= self.high
        value = torch.where(low, value.clamp(max=self.low), value)
        value = torch.where(high, value.clamp(min=self.high), value)
        return torch.where(low | high, value, target)


@torch.no_grad()
def clamp_of(function: Callable[[Tensor], Tensor] | None, like: Tensor) -> Clamp:
    """Recognise a clamp by its values on a grid; the identity for other functions and None.

    The grid has the dtype and device of `like`.
    """
    if function is None:
        return Clamp()
    x = torch.linspace(-12, 12, 193, dtype=like.dtype, device=like.device)
    x = torch.cat([x, x.new_tensor([-_FAR, _FAR])])
    try:
        y = call_user_code(function, x.clone())
    except UserCodeError:  # it takes channels, as PReLU does
        return Clamp()
    low, high = y[-2].item(), y[-1].item()
    found = Clamp(low if low > -_FAR else -torch.inf, high if high < _FAR else torch.inf)
    return found if torch.equal(found(x), y) else Clamp()
