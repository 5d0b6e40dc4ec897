"""The scores of a search, stored in a file so that a killed search can continue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from updp.io import processes
from updp.io.figures import Figures
from updp.io.files import content_of
from updp.search.score import Score
from updp.search.space import Genome


@dataclass(frozen=True)
class Evaluated:
    """A plan with its score."""

    genome: Genome
    score: Score

    def to_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        return {"genome": self.genome, **asdict(self.score)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluated:
        """The inverse of `to_json`."""
        score = {name: value for name, value in data.items() if name != "genome"}
        if "top1" in score:  # of an earlier version
            score["metric"] = score.pop("top1")
        return cls(tuple(data["genome"]), Score(**score))


Scores = Mapping[Genome, Evaluated]


class ScoreFile:
    """Scored plans, one JSON object per line; only the first process writes."""

    def __init__(self, path: Path) -> None:
        """Open a file, which need not exist yet; drop a last line that a kill cut off."""
        self._figures = Figures(path)
        if path.exists():
            self._figures.keep(lambda row: True)
        rows = processes.broadcast(self._figures.rows())
        with content_of(path):
            plans = [Evaluated.from_json(row) for row in rows]
        self.scored: dict[Genome, Evaluated] = {plan.genome: plan for plan in plans}

    def add(self, plans: Iterable[Evaluated]) -> None:
        """Append plans."""
        for plan in plans:
            self._figures.add(**plan.to_json())
            self.scored[plan.genome] = plan
