"""The demo's baselines and recipes."""

from pathlib import Path

import pytest
import torch

from updp import Recipe
from updp.data import open_source, preprocess_for
from updp.models import load_model

ROOT = Path(__file__).parents[2]
MODELS = ("resnet", "vit")


@pytest.mark.parametrize("name", MODELS)
def test_shipped_baseline_is_small_and_good(name: str) -> None:
    model = load_model(f"zoo/digits-{name}").eval()
    test = open_source("digits", input_size=(1, 8, 8)).test
    pixels = torch.stack([test[i][0] for i in range(len(test))])
    with torch.inference_mode():
        guesses = model(preprocess_for(model, test.size)(pixels)).argmax(1)
    right = (guesses == torch.tensor(test.targets)).float().mean().item()
    assert right >= 0.96


@pytest.mark.parametrize("name", MODELS)
def test_recipe_prunes_about_half_of_the_sites(name: str) -> None:
    recipe = Recipe.load(ROOT / "examples" / "digits" / f"{name}.yaml")
    assert recipe.budget is not None
    assert recipe.budget.blocks is not None
    blocks = {"resnet": 10, "vit": 8}[name]
    assert blocks // 2 <= recipe.budget.blocks < blocks
