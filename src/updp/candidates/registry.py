"""All kinds of candidates by name; a kind from outside the package is one more class here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from torch import fx, nn

from updp.blocks import Site
from updp.candidates.base import Candidate
from updp.candidates.drop import Drop
from updp.candidates.fold_norm import FoldNorm
from updp.candidates.fuse import Fuse
from updp.candidates.inherit.candidate import Inherit
from updp.candidates.narrow.candidate import Narrow
from updp.errors import UserError, reason
from updp.recipe import CandidateSettings

K = TypeVar("K", bound=type[Candidate])
KINDS: dict[str, type[Candidate]] = {c.kind: c for c in (Fuse, FoldNorm, Inherit, Narrow, Drop)}


def register_candidate(kind: K) -> K:
    """Class decorator: offer candidates of this kind too.

    Raises ValueError when another class has its `kind` already.
    """
    if KINDS.get(kind.kind, kind) is not kind:
        raise ValueError(f"candidate kind {kind.kind!r} is taken by {KINDS[kind.kind].__name__}")
    KINDS[kind.kind] = kind
    return kind


def proposals(
    site: Site, block: nn.Module, graph: fx.Graph, settings: CandidateSettings
) -> Iterator[Candidate]:
    """Candidates of every kind for a site."""
    for kind in KINDS.values():
        yield from kind.propose(site, block, graph, settings)


def from_json(data: dict[str, Any]) -> Candidate:
    """The candidate that `Candidate.to_json` described. Raises UserError for an unknown kind."""
    kind = KINDS.get(data.get("kind", ""))
    if kind is None:
        known = ", ".join(map(repr, KINDS))
        raise UserError(f"candidate kind {data.get('kind')!r} is unknown: there are {known}")
    try:
        return kind.from_json(data)
    except (KeyError, TypeError) as error:
        raise UserError(f"candidate {data} is not understood: {reason(error)}") from error
