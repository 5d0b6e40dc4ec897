"""Models with frozen parameters: what is trained, and which runs go on with them."""

from pathlib import Path

import pytest
from torch import nn

from tests import tiny
from tests.run.test_inputs import data
from updp import UserError, export, load, prune
from updp.io.files import read_json
from updp.models import load_model
from updp.recipe import Recipe
from updp.run.estimates import estimate_run
from updp.run.pipeline import open_run_directory


def recipe(**changes: str) -> Recipe:
    base = Recipe.load("fit-only").updated("data.held_out=20", "data.calibration=20")
    changed = [f"{name.replace('__', '.')}={value}" for name, value in changes.items()]
    return base.updated("budget.blocks=1", "search.evaluations=2", "search.refined=0", *changed)


@pytest.fixture
def module(tmp_path: Path) -> nn.Module:
    return load_model(tiny.write_model(tmp_path))


@pytest.mark.parametrize("stage", ["supernet", "reconstruct", "subnet"])
def test_a_model_of_frozen_parameters_only_cannot_be_trained(
    module: nn.Module, stage: str, tmp_path: Path
) -> None:
    given, trains = (data(), data(first=1)), recipe(**{f"{stage}__epochs": "2"})
    inputs = tiny.open_inputs(module.requires_grad_(False), given, trains)
    with pytest.raises(UserError, match=rf"{stage}\.epochs=2 trains, and all parameters .*fit-on"):
        open_run_directory(inputs, tmp_path / "run")
    with pytest.raises(UserError, match="fit-only, which trains nothing"):
        estimate_run(inputs)
    assert not (tmp_path / "run").exists()


def test_a_model_of_frozen_parameters_only_is_pruned_without_training(
    module: nn.Module, tmp_path: Path
) -> None:
    frozen = module.requires_grad_(False)
    merged = prune(frozen, (data(), data(first=1)), recipe(), out=tmp_path / "run")
    assert merged.plan.choices
    assert not any(p.requires_grad for p in load(tmp_path / "run", frozen).parameters())


def test_a_run_that_trained_is_exported_with_a_frozen_model(
    module: nn.Module, tmp_path: Path
) -> None:
    given = (data(), data(first=1))
    prune(module, given, recipe(subnet__epochs="1"), out=tmp_path / "run")
    frozen = module.requires_grad_(False)
    (exported,) = export(tmp_path / "run", "safetensors", model=frozen, data=given)
    assert exported.format == "safetensors"


def test_a_run_goes_on_only_with_the_same_parameters_frozen(
    module: nn.Module, tmp_path: Path
) -> None:
    given = (data(), data(first=1))
    trains, fits = recipe(subnet__epochs="1"), recipe()
    prune(module, given, trains, out=tmp_path / "trained")
    assert "frozen" not in read_json(tmp_path / "trained/supernet/key.json")  # as before it was one
    prune(module, given, fits, out=tmp_path / "fitted")
    next(module.parameters()).requires_grad_(False)
    with pytest.raises(UserError, match=r"another run: other parameters are frozen"):
        prune(module, given, trains, out=tmp_path / "trained")
    prune(module, given, fits, out=tmp_path / "fitted")
    prune(module, given, trains, out=tmp_path / "another")
    with pytest.raises(UserError, match=r"another run: other parameters are frozen"):
        prune(module.requires_grad_(True), given, trains, out=tmp_path / "another")
