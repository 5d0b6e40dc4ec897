"""The interface of a network that the training loop trains."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn


class Trainable(Protocol):
    """A module, such as a supernet, whose weights are not simply its state dict."""

    def weights(self) -> dict[str, Tensor]:
        """All tensors by name; training changes them in place."""

    def shapes(self) -> dict[str, Any]:
        """Plain data that says which parameters it trains in."""

    def load_weights(
        self, weights: Mapping[str, Tensor], shapes: Mapping[str, Any] | None = None
    ) -> None:
        """Copy in the results of `weights` and, where they may differ, `shapes`."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """`nn.Module.parameters`."""

    def train(self, mode: bool = True) -> object:
        """`nn.Module.train`."""
