import json

import pytest
from pydantic import ValidationError

from updp import Plan, UserError

PLAN = Plan(
    choices={"blocks.3": "conv1+conv2", "blocks.1": "conv1+conv2"},
    candidates={"blocks.3": {"kind": "inherit"}, "blocks.1": {"kind": "inherit"}},
    budget="blocks=2",
    hashes={"model": "m"},
)


def test_a_plan_survives_json_in_order() -> None:
    again = Plan.from_json(PLAN.to_json())
    assert again == PLAN
    assert list(again.choices) == ["blocks.3", "blocks.1"]
    assert again.to_json() == PLAN.to_json()
    assert len(again) == 2


def test_a_plan_is_frozen() -> None:
    with pytest.raises(ValidationError):
        PLAN.budget = "blocks=3"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choices": None}, "choices: "),
        ({"sites": []}, "sites: Extra inputs are not permitted"),
        ({"format": 2}, "its format is 2, and this version reads 1"),
    ],
)
def test_what_is_no_plan_is_refused(change: dict, said: str) -> None:
    text = json.dumps(json.loads(PLAN.to_json()) | change)
    with pytest.raises(UserError, match=f"'mine.json' is not a plan: {said}"):
        Plan.from_json(text, "mine.json")
    with pytest.raises(UserError, match=r"'mine\.json' is not a plan"):
        Plan.from_json(text[:-5], "mine.json")
