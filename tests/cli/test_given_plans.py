"""Runs whose plan was given in place of a search."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from updp.io.files import read_json

pytestmark = pytest.mark.usefixtures("fixed_clock")


@pytest.fixture
def plan(finished: Path, tmp_path: Path) -> dict[str, Any]:
    """The plan of a run that pruned several sites."""
    found: dict[str, Any] = read_json(finished / "plan.json")
    assert len(found["choices"]) > 1
    return found


def begun(tmp_path: Path, plan: dict[str, Any], *more: object) -> tuple[object, ...]:
    """Options of `updp prune` with a plan, from nothing."""
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    return (*more, "--plan", tmp_path / "plan.json", "--out", tmp_path / "run")


@pytest.fixture
def options(finished: Path) -> tuple[object, ...]:
    spec, recipe = read_json(finished / "run.json")["model"], tiny.make_recipe()
    return tiny.options(recipe, spec)


def test_another_plan_is_another_run(
    plan: dict[str, Any], options: tuple[object, ...], tmp_path: Path
) -> None:
    assert tiny.updp("prune", *begun(tmp_path, plan, *options)).code == 0
    run = tmp_path / "run"
    before = tiny.contents(run)
    turned = {name: dict(reversed(plan[name].items())) for name in ("choices", "candidates")}
    again = tiny.updp("prune", *begun(tmp_path, plan | turned, *options))
    said = "updp: warning: the budget blocks=2 is ignored, for a plan is given\n"
    assert (again.code, again.err) == (0, said)
    assert tiny.contents(run) == before
    # Without its plan, or with fewer of its sites chosen.
    assert tiny.updp("prune", "--out", run).code == 0
    assert tiny.contents(run) == before
    fewer = plan | {"choices": dict(list(plan["choices"].items())[:-1])}
    refused = tiny.updp("prune", *begun(tmp_path, fewer, *options))
    assert (refused.code, tiny.contents(run)) == (2, before)
    assert "holds another run: search.choices" in refused.err
    ignored = tiny.updp("prune", "--out", run, "--set", "budget.blocks=1")
    assert (ignored.code, tiny.contents(run)) == (2, before)
    other = tiny.updp("prune", "--out", run, "--budget", "blocks=1")
    assert other.code == 2
    assert "it was begun for a given plan, and now it is for a number of blocks" in other.err
    assert tiny.contents(run) == before
