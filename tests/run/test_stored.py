"""A run of format 1 that was stored in the repository: later versions open it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import updp
from tests import tiny
from updp.deploy.bench.bench_record import Bench
from updp.deploy.export.manifest import Exports
from updp.io.records import Record
from updp.plan import Plan
from updp.recipe import Recipe
from updp.run.finished import open_finished_run
from updp.run.records import Result, RunRecord
from updp.search.outcome import SearchResult
from updp.search.survey import Survey
from updp.stages.checks import Checks
from updp.supernet.fitting import FitRecord

STORED = Path(__file__).parents[1] / "data" / "stored"
RECORDS = (Bench, Checks, Exports, FitRecord, Plan, Result, RunRecord, SearchResult, Survey)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stored run beside the file that its model is from, as `updp prune --out run` saw it."""
    shutil.copytree(STORED, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("run")


# Fields of earlier versions, and what they are now.
RENAMED = {"top1": "metric", "fitted_top1": "fitted_metric", "top1_by_stage": "by_stage"}
REPLACED = ("reference", "agreement", "agreement_by_stage")  # by `metric`, which has the name


def holds(read: Any, stored: Any) -> bool:
    """Whether all that was stored was read; later versions may know further fields."""
    if isinstance(stored, dict):
        known = {RENAMED.get(n, n): value for n, value in stored.items() if n not in REPLACED}
        return all(name in read and holds(read[name], value) for name, value in known.items())
    if isinstance(stored, list):
        return len(read) == len(stored) and all(map(holds, read, stored))
    return read == stored


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_each_file_of_a_stored_run_is_read_whole(record: type[Record], run: Path) -> None:
    fields = json.loads(record.path(run).read_text())
    assert holds(record.read(run).model_dump(mode="json"), fields)


def test_a_stored_recipe_is_read_whole(run: Path) -> None:
    recipe = Recipe.load(run / "recipe.yaml")
    assert str(recipe.budget) == "blocks=2"
    assert recipe.supernet.epochs == 0.3


def test_the_merged_model_of_a_stored_run_computes_what_it_did(run: Path) -> None:
    images = torch.linspace(-2, 2, 128).reshape(2, 1, 8, 8)
    with torch.no_grad():
        logits = updp.load(run)(images)
    expected = torch.tensor(json.loads((STORED / "logits.json").read_text()))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_stored_run_opens_with_its_data_and_baseline(run: Path) -> None:
    opened = open_finished_run(run)
    assert len(opened.classes) == 10
    assert sorted(opened.plan.choices) == ["blocks.0", "blocks.3"]


def test_a_stored_run_is_reported_and_exported_again(run: Path) -> None:
    for command in (["report", run], ["export", run, "--to", "safetensors", "--out", "again"]):
        outcome = tiny.updp(*command)
        assert (outcome.code, outcome.err) == (0, "")
    assert "blocks.3" in (run / "report.html").read_text()
    assert (run.parent / "again" / "model.safetensors").exists()
