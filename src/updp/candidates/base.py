"""The interface of a candidate, of its trainable form and of its merged form."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python
from torch import Tensor, fx, nn

from updp.blocks import Site, TracedSite
from updp.blocks.surgery import Replacement
from updp.blocks.tracing.proxies import set_modes
from updp.fit.fit_task import FitTask
from updp.recipe import CandidateSettings, FitSettings

# Which parameters a form trains: the block's own (factored), those of its merged operators
# (collapsed), or the block's own with the merged ones already registered beside them (reserved),
# so that one optimiser can hold both.
FormShape = Literal["factored", "reserved", "collapsed"]


class MergedForm(Protocol):
    """A form after merging: ordinary modules in the graph of its block."""

    def replacement(self, site: Site, dtype: torch.dtype, device: torch.device) -> Replacement:
        """Return the graph nodes and modules to put in the place of the site's region."""
        ...


class Form(nn.Module, ABC):
    """A candidate as a module that trains, in place of its site.

    It owns what the candidate adds, such as BatchNorms, copies with fewer channels or a new layer;
    all else are the block's own modules.

    Modules of the block are held in plain lists, so that torch does not register them:
    `parameters()` and `state_dict()` list only what the candidate adds. `extras` are the values of
    the region's further inputs, such as an attention mask or a size.

    >>> from torchvision.models.resnet import BasicBlock
    >>> from updp.blocks import find
    >>> from updp.candidates import Drop
    >>> block, x = BasicBlock(8, 8).eval(), torch.randn(2, 8, 14, 14)
    >>> model = nn.Sequential(block)
    >>> findings = find(model, x)
    >>> form = Drop().build(findings.traced(findings.sites[0], model))
    >>> torch.equal(form(x, lam=0.0), block(x))
    True
    """

    @abstractmethod
    def forward(self, x: Tensor, *extras: Any, lam: float = 1.0) -> Tensor:
        """Return the site's output for its input `x`, both in the layout of the block.

        `lam` is lambda of the annealing gate: 0 computes the baseline block exactly, 1 the
        pruned block.
        """

    @abstractmethod
    def calibrate(self, x: Tensor, *extras: Any) -> None:
        """Initialise what the form owns from the inputs `x` that the site gets in the baseline.

        These are the statistics of BatchNorms, a first linear map, or which heads stay.
        """

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, also for the parts of the block held in lists."""
        for part in self._parts():
            set_modes(part, mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply a change of type or device also to the parts of the block held in lists."""
        for part in self._parts():
            part._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _parts(self) -> Iterator[fx.GraphModule]:
        """The parts of the block that are held in lists."""
        lists = (value for value in vars(self).values() if isinstance(value, list))
        return (part for parts in lists for part in parts if isinstance(part, fx.GraphModule))

    def fit_tasks(self, settings: FitSettings, batches: int) -> list[FitTask]:
        """Return the regressions over `batches` calibration batches that fit the form, in order.

        Afterwards the form trains in the shape that it is merged to.
        """
        return []

    @property
    def shape(self) -> FormShape:
        """Which parameters the form trains; most forms have one shape only."""
        return "factored"

    def set_shape(self, shape: FormShape) -> None:
        """Switch to another shape, whose parameters start at what the form computes now."""

    @abstractmethod
    def merged(self) -> MergedForm:
        """Merge the form at `lam` 1 in evaluation mode, exactly."""


def blend(kept: Tensor, pruned: Tensor, lam: float) -> Tensor:
    """(1 - lam) * kept + lam * pruned, tensors of one shape, in the wider of their dtypes.

    Under autocast two paths of a block may end in different dtypes, which `torch.lerp` refuses.
    """
    dtype = torch.promote_types(kept.dtype, pruned.dtype)
    return torch.lerp(kept.to(dtype), pruned.to(dtype), lam)


class Candidate(ABC):
    """A replacement for a site: a small frozen dataclass whose fields are written into the plan.

    In the life of a candidate these are called in turn: `propose` for each site, `build` to time it
    (`timing.py`) and for the supernet, then of its form `calibrate`, `fit_tasks` for the fit,
    `forward` in training, and `merged().replacement` at the end. Where a plan is read, in place of
    `propose`, `fits` says whether it is one for this model.

    >>> candidate = updp.inspect(model, (1, 8, 8)).sites[0].candidate
    >>> candidate.kind, candidate.label, candidate.shallower
    ('inherit', 'conv1+conv2(1x1)', True)
    """

    kind: ClassVar[str]
    # Whether the candidate takes depth away: a budget's `blocks` counts only such candidates.
    shallower: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """Short name for people, unique within a site."""
        return self.kind

    @property
    @abstractmethod
    def rank(self) -> int:
        """How much the candidate removes, as in `ranks`; the lowest of the faster ones is used."""

    @classmethod
    @abstractmethod
    def propose(cls, traced: TracedSite, settings: CandidateSettings) -> Iterator[Self]:
        """Yield candidates of this kind for a site, in the same order for sites of one structure.

        Args:
            traced: the branch that may be replaced, in its block.
            settings: which candidates the recipe admits.
        """

    @abstractmethod
    def fits(self, site: Site) -> bool:
        """Whether the site has the structure that this candidate needs."""

    @abstractmethod
    def build(self, traced: TracedSite) -> Form:
        """Return the trainable form on the block's own modules."""

    def to_json(self) -> dict[str, Any]:
        """Return the kind and the fields as plain data, which `from_json` reads."""
        data: dict[str, Any] = to_jsonable_python(self)
        return {"kind": self.kind, **data}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Make a candidate from its fields. Raises KeyError or TypeError for other data."""
        try:
            return TypeAdapter(cls).validate_python({f.name: data[f.name] for f in fields(cls)})  # type: ignore[arg-type]
        except ValidationError as error:
            raise TypeError(error.errors()[0]["msg"]) from error
