"""What was decided: which candidate each pruned site takes. Frozen, plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from updp.errors import UserError


class Plan(BaseModel):
    """The pruned sites, in the model's order, each with its candidate's description and label.

    A site that is not named keeps its baseline form. `hashes` ties the plan to the model, data
    and recipe that it was made with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    choices: dict[str, str]
    candidates: dict[str, dict[str, Any]]
    budget: str = ""
    hashes: Mapping[str, str] = {}

    def __len__(self) -> int:
        return len(self.choices)

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        return json.dumps(self.model_dump(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "plan") -> Plan:
        """Read a plan. Raises UserError naming `source`."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(p) for p in first["loc"]) or "it"
            raise UserError(f"'{source}' is no plan: {field}: {first['msg']}") from error
