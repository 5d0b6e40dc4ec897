"""What a site may become: one interface for every candidate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, fx, nn

from updp.blocks import Site
from updp.candidates.merged import Merged


class Form(nn.Module, ABC):
    """A candidate as it is trained: linear inside, its own BatchNorms, the block's own weights.

    Weights that the block also uses are reached, not owned: `parameters()` and `state_dict()`
    list only what the candidate adds.
    """

    @abstractmethod
    def forward(self, x: Tensor, progress: float = 1.0) -> Tensor:
        """The site's output for its input `x`.

        `progress` is lambda of the annealing gate: 0 computes the baseline block exactly, 1 the
        pruned block.
        """

    @abstractmethod
    def calibrate(self, x: Tensor) -> None:
        """Start the BatchNorms from the inputs `x` that the site sees in the baseline."""

    @abstractmethod
    def merged(self) -> Merged:
        """The form at progress 1 in evaluation, as operators. Exact."""


class Candidate(ABC):
    """A thing that a site may become. Small, comparable, and written into the plan as JSON."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def label(self) -> str:
        """A short name that a person can read and that is unique within a site."""

    @abstractmethod
    def fits(self, site: Site) -> bool:
        """Whether the site has the operators that this candidate is about."""

    @abstractmethod
    def build(self, site: Site, block: nn.Module, graph: fx.Graph) -> Form:
        """The trainable form on the given block's own modules."""

    @abstractmethod
    def macs(self, site: Site) -> int:
        """Multiply-accumulates of the merged form for one image."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` makes an equal candidate."""
