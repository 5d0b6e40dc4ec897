"""What a site may become: one interface for every candidate."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, fx, nn

from updp.blocks import Site
from updp.blocks.surgery import Replacement
from updp.fit.fitting import FitTask
from updp.recipe import CandidateSettings, FitSettings

# Parameters of a form: the block's own; the same, with those of the merged operators beside them,
# so that an optimiser can hold both; those of the merged operators.
FormShape = Literal["factored", "reserved", "collapsed"]


class MergedForm(Protocol):
    """What is left of a form once it is merged: ordinary modules in the graph of its block."""

    def replacement(self, site: Site, dtype: torch.dtype, device: torch.device) -> Replacement:
        """Ready to stand in the place of the site's region."""
        ...


class Form(nn.Module, ABC):
    """A candidate as it is trained: its own BatchNorms, the block's own weights.

    Weights that the block also uses are reached, not owned: `parameters()` and `state_dict()`
    list only what the candidate adds. `extras` are the values of the region's extras: a mask, a
    size, or nothing.

    >>> from torchvision.models.resnet import BasicBlock
    >>> from updp.blocks import find
    >>> from updp.candidates import Drop
    >>> block, x = BasicBlock(8, 8).eval(), torch.randn(2, 8, 14, 14)
    >>> findings = find(nn.Sequential(block), x)
    >>> form = Drop().build(findings.sites[0], block, findings.graphs["0"])
    >>> torch.equal(form(x, lam=0.0), block(x))
    True
    """

    @abstractmethod
    def forward(self, x: Tensor, *extras: Any, lam: float = 1.0) -> Tensor:
        """The site's output for its input `x`.

        `lam` is lambda of the annealing gate: 0 computes the baseline block exactly, 1 the
        pruned block.
        """

    @abstractmethod
    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Start the BatchNorms from the inputs `x` that the site sees in the baseline."""

    def fit_tasks(self, settings: FitSettings, batches: int) -> list[FitTask]:
        """How the form is fitted, to so many batches: regressions to be made in this order.

        Afterwards the form trains in the shape that it is merged to.
        """
        return []

    @property
    def shape(self) -> FormShape:
        """In which parameters the form trains; most forms have one shape only."""
        return "factored"

    def set_shape(self, shape: FormShape) -> None:
        """Train on in another shape, from what the form computes now, if the form has others."""

    @abstractmethod
    def merged(self) -> MergedForm:
        """The form at lam 1 in evaluation. Exact."""


class Candidate(ABC):
    """A thing that a site may become. Small, comparable, and written into the plan as JSON.

    >>> candidate = updp.inspect(model, (1, 8, 8)).sites[0].candidate
    >>> candidate.kind, candidate.label, candidate.shallower
    ('inherit', 'conv1+conv2(1x1)', True)
    """

    kind: ClassVar[str]
    shallower: ClassVar[bool] = (
        True  # whether it takes depth away, which a budget's `blocks` counts
    )

    @property
    @abstractmethod
    def label(self) -> str:
        """A short name that a person can read and that is unique within a site."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """How much it takes away, 0 for least: of a site's faster candidates the least is taken."""

    @classmethod
    @abstractmethod
    def propose(
        cls, site: Site, block: nn.Module, graph: fx.Graph, settings: CandidateSettings
    ) -> Iterator[Self]:
        """Candidates of this kind for a site; sites of one structure have theirs in one order."""

    @abstractmethod
    def fits(self, site: Site) -> bool:
        """Whether the site has what this candidate is about."""

    @abstractmethod
    def build(self, site: Site, block: nn.Module, graph: fx.Graph) -> Form:
        """The trainable form on the given block's own modules."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` makes an equal candidate; `kind` is in it."""

    @classmethod
    @abstractmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_json`. Raises KeyError or TypeError for data that are not its own."""
