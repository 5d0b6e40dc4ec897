"""End activations that clamp: where the target is clamped, any value beyond the bound will do."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_FAR = 1e4


@dataclass(frozen=True)
class Clamp:
    """`min(max(x, low), high)`: ReLU is (0, inf), ReLU6 (0, 6), none (-inf, inf)."""

    low: float = -torch.inf
    high: float = torch.inf

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it, elementwise."""
        return x.clamp(self.low, self.high)

    @property
    def is_identity(self) -> bool:
        """Whether nothing is clamped."""
        return self == Clamp()

    def nearest(self, target: Tensor, value: Tensor) -> Tensor:
        """The point nearest to `value` among those that are clamped to what `target` is.

        FitTask to it instead of to `target` never makes the clamped error larger: it bounds that
        error from above and touches it at `value` (majorisation: Hunter & Lange, *A Tutorial on MM
        Algorithms*, 2004).
        """
        low, high = target <= self.low, target >= self.high
        value = torch.where(low, value.clamp(max=self.low), value)
        value = torch.where(high, value.clamp(min=self.high), value)
        return torch.where(low | high, value, target)


@torch.no_grad()
def clamp_of(function: Callable[[Tensor], Tensor] | None, like: Tensor) -> Clamp:
    """The clamp that `function` is, found by trying; no clamp for any other function or None."""
    if function is None:
        return Clamp()
    x = torch.linspace(-12, 12, 193, dtype=like.dtype, device=like.device)
    x = torch.cat([x, x.new_tensor([-_FAR, _FAR])])
    try:
        y = function(x.clone())
    except (RuntimeError, TypeError, IndexError):  # it wants channels
        return Clamp()
    low, high = y[-2].item(), y[-1].item()
    found = Clamp(low if low > -_FAR else -torch.inf, high if high < _FAR else torch.inf)
    return found if torch.equal(found(x), y) else Clamp()
