"""The interface of a network that the training loop trains."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn


class Trainable(Protocol):
    """A module, such as a supernet, whose weights are not simply its state dict."""

    def weights(self) -> dict[str, Tensor]:
        """All tensors by name; training changes them in place."""

    def shapes(self) -> dict[str, Any]:
        """Plain data that describes which parameters it currently trains."""

    def load_weights(
        self, weights: Mapping[str, Tensor], shapes: Mapping[str, Any] | None = None
    ) -> None:
        """Load the results of `weights` and, if they may differ, of `shapes`."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """`nn.Module.parameters`."""

    def train(self, mode: bool = True) -> object:
        """`nn.Module.train`."""
