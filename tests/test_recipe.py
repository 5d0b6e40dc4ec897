from pathlib import Path

import pytest
from pydantic import ValidationError

from updp import Recipe, UserError
from updp.budget import Budget


def test_yaml_there_and_back(tmp_path: Path) -> None:
    recipe = Recipe(budget=Budget(latency=0.7)).updated(
        "data.mean=[0.1, 0.2, 0.3]", "subnet.schedule=linear", "data.input_size=[3, 32, 32]"
    )
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
    assert recipe.data.input_size == (3, 32, 32)


def test_an_empty_recipe_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("# nothing\n")
    assert Recipe.load(tmp_path / "recipe.yaml") == Recipe()


def test_settings_change_what_they_name_and_no_more() -> None:
    recipe = Recipe().updated("subnet.lr=0.5", "seed=4")
    expected = Recipe().model_dump()
    expected["seed"], expected["subnet"]["lr"] = 4, 0.5
    assert recipe.model_dump() == expected
    assert Recipe().subnet.lr == 0.01


def test_the_last_setting_wins() -> None:
    assert Recipe().updated("seed=1", "seed=2").seed == 2


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Recipe().seed = 3  # type: ignore[misc]


def test_the_hash_is_of_the_content() -> None:
    assert Recipe().hash() == Recipe.model_validate({"seed": 0}).hash()
    assert Recipe().hash() != Recipe(seed=1).hash()


@pytest.mark.parametrize("field", ["supernet.lr", "subnet.distill", "merge.tolerance_float32"])
@pytest.mark.parametrize("value", [".inf", ".nan", "-1"])
def test_numbers_that_are_none(field: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--set {field}={value}: {field}: Input should be"):
        Recipe().updated(f"{field}={value}")
