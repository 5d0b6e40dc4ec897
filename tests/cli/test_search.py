"""Budgets, fronts, picks and workers, as a user meets them."""

import shutil
import sys
from pathlib import Path

import pytest

import updp
from tests import tiny
from tests.sampling import slow
from updp.io.files import read_json
from updp.stages.context import STAGES

pytestmark = pytest.mark.usefixtures("fixed_clock")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def without(run: Path, first: str) -> Path:
    """The run before a stage."""
    for stage in STAGES[STAGES.index(first) :]:
        shutil.rmtree(run / stage)
    return run


def scored(run: Path) -> int:
    """How many plans are in the file of scores."""
    return len((run / "search" / "scores.jsonl").read_text().splitlines())


def test_a_search_ends_with_its_front(run: Path) -> None:
    outcome = tiny.updp("search", "--out", without(run, "search"))
    assert (outcome.code, outcome.err) == (0, "")
    assert "front of " in outcome.out
    found = read_json(run / "search" / "front.json")
    assert f"front of {len(found['points'])} plans" in outcome.out
    assert "*" in outcome.out
    assert "<svg" in (run / "search" / "front.svg").read_text()
    assert found["points"][found["chosen"]]["choices"] == read_json(run / "plan.json")["choices"]
    assert scored(run) == len(found["points"])


def test_a_search_without_matplotlib_ends_without_a_picture_and_says_why(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_json(without(run, "subnet") / "plan.json")
    shutil.rmtree(run / "search")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = tiny.updp("search", "--out", run)
    assert outcome.code == 0
    assert "front.svg needs matplotlib: pip install 'updp[plot]'" in outcome.out + outcome.err
    assert not (run / "search" / "front.svg").exists()
    assert read_json(run / "plan.json") == before


def test_a_genetic_search_without_optuna_ends_before_anything_is_trained(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    options = tiny.options(tiny.make_recipe(), tiny_model)
    out = tmp_path / "run"
    outcome = tiny.updp("prune", *options, "--set", "search.searcher=genetic", "--out", out)
    assert (outcome.code, outcome.err) == (
        2,
        "updp: search.searcher=genetic needs optuna: pip install 'updp[genetic]'\n",
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "budget", [slow(("macs=0.8",)), ("latency=1.5x,parameters=90%",), ("blocks=2", "memory=99%")]
)
def test_several_budgets_hold_together(budget: tuple[str, ...], run: Path) -> None:
    options = [part for text in budget for part in ("--budget", text)]
    without(run, "supernet")  # another kind of budget
    for command in ("supernet", "search"):
        outcome = tiny.updp(command, "--out", run, *options)
        assert (outcome.code, outcome.err) == (0, "")
    found = read_json(run / "search" / "front.json")
    base, plan = found["baseline"], found["points"][found["chosen"]]
    asked = ",".join(budget)
    assert found["budget"] == asked
    if "macs" in asked:
        assert plan["macs"] <= 0.8 * base["macs"]
    if "latency" in asked:
        assert plan["latency"] <= base["latency"] / 1.5
        assert plan["parameters"] <= 0.9 * base["parameters"]
    if "blocks" in asked:
        assert plan["blocks"] == 2
        assert plan["memory"] <= 0.99 * base["memory"]


def test_another_point_is_picked_without_a_search(run: Path) -> None:
    before = tiny.contents(run)
    outcome = tiny.updp("prune", "--out", run, "--pick", "macs=0.5")
    assert (outcome.code, outcome.err) == (0, "")
    picked = run / "picks" / "macs=0.5"
    assert str(picked) in outcome.out.replace("\n", "")
    assert {n: c for n, c in tiny.contents(run).items() if not n.startswith("picks")} == before
    plan = updp.Plan.from_json((picked / "plan.json").read_text())
    assert plan.budget == "macs=0.5"
    result = read_json(picked / "result.json")
    assert result["merged"]["macs"] <= 0.5 * result["baseline"]["macs"]
    updp.load(picked)
    again = tiny.contents(picked)
    assert tiny.updp("prune", "--out", run, "--pick", "macs=0.5").code == 0
    assert tiny.contents(picked) == again
    # Starting over begins after the search, which is the other run's.
    assert tiny.updp("prune", "--out", run, "--pick", "macs=0.5", "--fresh").code == 0
    assert (picked / "plan.json").read_bytes() == again["plan.json"]
    assert (picked / "model.safetensors").read_bytes() == again["model.safetensors"]
    assert {n: c for n, c in tiny.contents(run).items() if not n.startswith("picks")} == before


def test_picks_of_a_search_go_with_it(run: Path) -> None:
    assert tiny.updp("prune", "--out", run, "--pick", "macs=0.5").code == 0
    assert tiny.updp("subnet", "--out", run, "--fresh").code == 0
    assert (run / "picks" / "macs=0.5").is_dir()
    assert tiny.updp("search", "--out", run, "--fresh").code == 0
    assert not (run / "picks").exists()


def test_a_pick_that_is_not_there_leaves_no_trace(run: Path) -> None:
    before = tiny.contents(run)
    outcome = tiny.updp("prune", "--out", run, "--pick", "40")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith("updp: --pick 40: the front has lines 1 to ")
    assert tiny.contents(run) == before
    shutil.rmtree(run / "search")
    outcome = tiny.updp("prune", "--out", run, "--pick", "1")
    assert outcome.code == 2
    assert "has no finished search" in outcome.err


def test_a_bad_searcher_is_quoted(run: Path) -> None:
    options = "--set", "search.searcher=best"
    outcome = tiny.updp("search", "--out", without(run, "search"), *options)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "search.searcher: it takes 'bayes'" in outcome.err
