"""Register of candidate kinds by name, from this package and from outside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from reprlib import Repr
from typing import Any, ClassVar, TypeVar

from updp.arguments import checked
from updp.blocks import Findings, Site, TracedSite
from updp.candidates import ranks
from updp.candidates.attention.candidate import NarrowAttention
from updp.candidates.base import Candidate, Form
from updp.candidates.drop import Drop
from updp.candidates.fold_norm import FoldNorm
from updp.candidates.fuse import Fuse
from updp.candidates.inherit.candidate import Inherit
from updp.candidates.linear import OneLinear
from updp.candidates.narrow.candidate import Narrow
from updp.errors import UserError, reason
from updp.plan import Plan
from updp.recipe import CandidateSettings

K = TypeVar("K", bound=type[Candidate])
# The order is that in which a site's candidates are proposed.
_KINDS = (Fuse, FoldNorm, Inherit, Narrow, NarrowAttention, OneLinear, Drop)
KINDS: dict[str, type[Candidate]] = {c.kind: c for c in _KINDS}


@checked()
def register_candidate(kind: K) -> K:
    """Class decorator: offer candidates of this kind, too.

    Raises ValueError if another class already has its `kind`.

    >>> from updp.candidates import Drop
    >>> @updp.register_candidate
    ... class DropWide(Drop):
    ...     kind = "drop-wide"
    ...     def fits(self, site):
    ...         return super().fits(site) and site.channels >= 256
    """
    if KINDS.get(kind.kind, kind) is not kind:
        raise ValueError(f"candidate kind {kind.kind!r} is taken by {KINDS[kind.kind].__name__}")
    KINDS[kind.kind] = kind
    return kind


def proposals(traced: TracedSite, settings: CandidateSettings) -> Iterator[Candidate]:
    """Yield the candidates of every kind for a site; see `Candidate.propose`."""
    for kind in KINDS.values():
        yield from kind.propose(traced, settings)


_quote = Repr()  # a damaged file may hold megabytes of text
_quote.maxstring = _quote.maxother = 200
_quoted = _quote.repr


def read_candidate(data: dict[str, Any]) -> Candidate:
    """Read what `Candidate.to_json` wrote. Raises UserError for an unknown kind or wrong data."""
    kind = KINDS.get(str(data.get("kind")))
    if kind is None:
        known = ", ".join(map(repr, KINDS))
        raise UserError(f"candidate kind {_quoted(data.get('kind'))} is unknown: there are {known}")
    try:
        return kind.from_json(data)
    except (KeyError, TypeError) as error:
        raise UserError(f"candidate {_quoted(data)} is not understood: {reason(error)}") from error


def candidates_of_plan(plan: Plan, findings: Findings) -> dict[str, tuple[Candidate, ...]]:
    """The plan's candidate for each site that it prunes, as the only one of that site.

    Raises UserError if the plan, perhaps written by hand, does not fit the model.
    """
    sites = {site.name: site for site in findings.sites}
    candidates: dict[str, tuple[Candidate, ...]] = {}
    for name, label in plan.choices.items():
        if name not in sites:
            raise UserError(f"the plan prunes {name!r}, which is no site of this model")
        if name not in plan.candidates:
            raise UserError(f"the plan names no candidate for {name!r}")
        candidate = read_candidate(plan.candidates[name])
        if candidate.label != label or not candidate.fits(sites[name]):
            raise UserError(f"the plan's candidate {label!r} does not fit the site {name!r}")
        candidates[name] = (candidate,)
    return candidates


@dataclass(frozen=True)
class Unknown(Candidate):
    """A candidate of a kind that is not registered here: reports show it, it cannot be built."""

    kind: ClassVar[str] = "unknown"
    data: dict[str, Any]

    @property
    def label(self) -> str:
        """The kind under which it was written."""
        return str(self.data.get("kind"))

    @property
    def rank(self) -> int:
        """Highest of all."""
        return ranks.UNKNOWN

    @classmethod
    def propose(cls, traced: TracedSite, settings: CandidateSettings) -> Iterator[Unknown]:
        """Yield nothing."""
        return iter(())

    def fits(self, site: Site) -> bool:
        """Whether it can be built there: never."""
        return False

    def build(self, traced: TracedSite) -> Form:
        """Raise UserError, because the class to build it is missing."""
        raise UserError(
            f"candidate kind {_quoted(self.label)} is unknown: there are {', '.join(KINDS)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the data unchanged."""
        return self.data
