"""The plan: which candidate each pruned site takes, as immutable plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from updp.arguments import checked
from updp.errors import DamagedError, UserError, reason
from updp.io.records import Record


class Plan(Record, frozen=True, extra="forbid"):
    """The pruned sites in the model's order, each with its candidate's label and data.

    Sites that are not named keep their baseline form.

    >>> plan = updp.Plan.load("runs/mine/plan.json")
    >>> len(plan), list(plan.choices)
    (2, ['blocks...', 'blocks...'])
    >>> updp.Plan.from_json(plan.to_json()) == plan
    True
    """

    FILE: ClassVar[str] = "plan.json"
    WHAT: ClassVar[str] = "a plan"
    choices: dict[str, str]  # label of the candidate, by site
    candidates: dict[str, dict[str, Any]]  # kind and fields of the same candidate, by site
    budget: str = ""  # budget or pick that the plan was chosen for, as text
    hashes: Mapping[str, str] = {}  # sha256 by `model` (its weights), `data` and `recipe`

    def __len__(self) -> int:
        return len(self.choices)

    def to_json(self) -> str:
        """JSON text that `from_json` reads."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    @classmethod
    @checked()
    def from_json(cls, text: str, source: str = "plan") -> Plan:
        """Read a plan. Raises UserError naming `source`."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"'{source}' is not a plan: {reason(error)}") from error
        return cls.parsed(data, f"'{source}'")

    @classmethod
    @checked()
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a file. Raises UserError naming it."""
        try:
            return cls.read_file(Path(path))
        except DamagedError as error:
            if error.path.name == cls.FILE:
                raise  # in a run directory a stage writes it again
            # Another file of a run is not damaged: it was named by mistake.
            raise UserError(f"{error}; give a plan.json, as `updp search` writes it") from error
