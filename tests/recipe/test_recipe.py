import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from timm.optim import list_optimizers

from updp import Recipe, UserError
from updp.recipe import NAMES
from updp.recipe.budget import Budget
from updp.recipe.settings import FitSettings


def test_a_recipe_survives_yaml(tmp_path: Path) -> None:
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
    assert Recipe().subnet.lr == 0.001


def test_the_last_setting_wins() -> None:
    assert Recipe().updated("seed=1", "seed=2").seed == 2


def test_a_field_of_the_budget_needs_no_budget_before() -> None:
    assert Recipe().updated("budget.blocks=2", "budget.macs=0.7") == Recipe(
        budget=Budget(blocks=2, macs=0.7)
    )
    known = Recipe(budget=Budget(blocks=2)).updated("budget.blocks=3")
    assert known.budget == Budget(blocks=3)
    for setting, said in (
        ("budget.block=2", "no field 'budget.block'; did you mean blocks?"),
        ("budget.blocks=0", "budget.blocks: it takes at least 1, not 0"),
        ("budget.blocks=null", "budget: give some of blocks, latency, macs, parameters"),
    ):
        with pytest.raises(UserError, match=re.escape(f": {said}")):
            Recipe().updated(setting)


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Recipe().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Recipe(seed="x"), "Recipe: seed: it takes a whole number"),
        (lambda: FitSettings(images=1), "FitSettings: images: it takes at least"),
        (lambda: Recipe(sed=1), "Recipe: no field 'sed'; did you mean seed?"),
        (lambda: Recipe(subnet={"epoch": 3}), "Recipe: no field 'subnet.epoch'; did you mean"),
        (lambda: Recipe(budget={"blocks": 0}), "Recipe: budget.blocks: it takes at least"),
        (lambda: Recipe(budget={"block": 1}), "Recipe: no field 'budget.block'; did you mean"),
        (lambda: Budget(latency="fast"), "Budget: latency: write a share below 1, or an amount"),
        (lambda: FitSettings(image=9), "FitSettings: no field 'image'; did you mean images"),
    ],
)
def test_what_is_made_in_python_is_one_line(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError) as refused:
        make()
    assert str(refused.value).startswith(said)


def test_the_hash_follows_the_content() -> None:
    assert Recipe().hash() == Recipe.model_validate({"seed": 0}).hash()
    assert Recipe().hash() != Recipe(seed=1).hash()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("decay=cosin",), "decay: there is no such decay (but cosine), not 'cosin'"),
        (("decay=7up",), "no such decay (but cosine, tanh, poly, step, constant), not '7up'"),
        (("momentum=0.8", "optimizer=adamw"), "momentum: adamw has no momentum"),
        (("betas=[0.9, 0.99]",), "betas: sgd has no betas, not [0.9, 0.99]"),
        (("optimizer=adan", "betas=[0.9, 0.99]"), "betas: adan has 3 betas"),
        (("optimizer=adamw", "betas=[0.9, 1]"), "each must be at least 0 and less than 1"),
        (("optimizer=adahessian",), "optimizer: it needs second derivatives, which nothing here"),
        (("optimizer=kron",), "optimizer: its state cannot be saved, so a killed run could not go"),
        (("optimizer=kronw",), "such as adamw, not 'kronw'"),
        (("ema=1",), "ema: it takes less than 1"),
        (("mixup=-1",), "mixup: it takes at least 0"),
    ],
)
@pytest.mark.parametrize("stage", ["supernet", "subnet"])
def test_impossible_training_settings_are_refused(
    settings: tuple[str, ...], said: str, stage: str
) -> None:
    with pytest.raises(UserError) as raised:
        Recipe().updated(*(f"{stage}.{setting}" for setting in settings))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", list_optimizers("kron*"))  # later versions of timm have more
def test_no_form_of_kron_is_taken_where_a_training_may_be_killed(name: str) -> None:
    with pytest.raises(UserError, match=f"its state cannot be saved, .* not '{name}'"):
        Recipe().updated(f"subnet.optimizer={name}")


def test_sites_alone_are_trained_by_what_needs_no_checkpoint() -> None:
    assert Recipe().updated("reconstruct.optimizer=kron").reconstruct.optimizer == "kron"
    with pytest.raises(UserError, match=r"reconstruct.optimizer: it needs second derivatives, "):
        Recipe().updated("reconstruct.optimizer=adahessian")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("color_jitter=-1", "color_jitter: each must be at least 0, not -1"),
        ("color_jitter=[0.1, -0.1, 0.1]", "color_jitter: each must be at least 0, not ["),
        ("color_jitter=[0.1, 0.1, 0.1, 0.9]", "color_jitter: the fourth, of hue, must be at most"),
        ("scale=[-1, 2]", "scale: give the lower end before the upper one, both above 0, not ["),
        ("scale=[0, 0]", "scale: give the lower end before"),
        ("scale=[1, 0.08]", "scale: give the lower end before"),
        ("scale=[0.08, 2]", "scale: a crop takes at most the whole area"),
        ("ratio=[0, 0]", "ratio: give the lower end before"),
        ("ratio=[2, 1]", "ratio: give the lower end before"),
        ("crop_pct=1e-6", "crop_pct: it takes at least 0.1"),
    ],
)
def test_impossible_crops_and_colours_are_refused(setting: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        Recipe().updated(f"data.{setting}")
    assert str(raised.value).startswith(f"--set data.{setting}: data.{said}")


@pytest.mark.parametrize(
    "setting",
    ["color_jitter=0", "color_jitter=[0, 1, 2, 0.5]", "scale=[1, 1]", "ratio=[0.5, 2]"],
)
def test_the_ends_of_crops_and_colours_are_taken(setting: str) -> None:
    assert Recipe().updated(f"data.{setting}").data.asks_for_timm


def test_blends_have_no_labels_to_learn_from() -> None:
    with pytest.raises(UserError, match=r"blended=true has no labels .* distill=0\.9 .* mixup"):
        Recipe().updated("subnet.blended=true")
    assert Recipe().updated("subnet.blended=true", "subnet.distill=1").subnet.blended


def test_betas_are_for_optimisers_that_have_them() -> None:
    recipe = Recipe().updated("subnet.betas=[0.8, 0.99]", "subnet.optimizer=adamw")
    assert recipe.subnet.betas == (0.8, 0.99)
    # A wrong optimiser is what is said, not what it lacks.
    with pytest.raises(UserError, match="timm has no such optimizer"):
        recipe.updated("subnet.optimizer=adamv")


def test_every_field_of_the_training_stages_says_what_it_is() -> None:
    from updp.recipe import SubnetSettings, SupernetSettings

    for part in (SupernetSettings, SubnetSettings):
        silent = {name for name, field in part.model_fields.items() if not field.description}
        assert not silent


@pytest.mark.parametrize("field", ["supernet.lr", "subnet.distill", "merge.tolerance_float32"])
@pytest.mark.parametrize("value", [".inf", ".nan", "-1"])
def test_numbers_that_are_not_finite_or_negative_are_refused(field: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--set {field}={value}: {field}: it takes"):
        Recipe().updated(f"{field}={value}")


@pytest.mark.parametrize("name", NAMES)
def test_recipes_by_name_are_valid(name: str) -> None:
    assert isinstance(Recipe.load(Path(name)), Recipe)
    for file in Path("examples").rglob("*.yaml"):
        Recipe.load(file)


def test_what_recipes_by_name_promise() -> None:
    assert Recipe.load(Path("default")) == Recipe()
    assert Recipe.load(Path("fit-only")).subnet.epochs == 0
    paper = Recipe.load(Path("paper"))
    assert paper.supernet.start == "inherit"
    assert paper.supernet.epochs > 0
    assert paper.subnet.gate == "anneal"
    assert paper.recalibrates
    assert not Recipe().recalibrates


def test_a_name_that_is_no_recipe_is_told_those_that_are() -> None:
    with pytest.raises(UserError, match=r"'papr' cannot be read.*\(did you mean paper, "):
        Recipe.load(Path("papr"))
    with pytest.raises(UserError, match=r"'mine' cannot be read.*\(there are .*fit-only"):
        Recipe.load(Path("mine"))


def test_of_several_settings_the_wrong_one_is_named() -> None:
    with pytest.raises(UserError, match=r"^--set data.input_size=\[1, 8\]: data.input_size.2: "):
        Recipe().updated("search.evaluations=5", "data.input_size=[1, 8]", "data.mean=[0.5]")


def test_a_fitted_block_has_nothing_to_anneal() -> None:
    with pytest.raises(UserError, match="gate=anneal"):
        Recipe().updated("subnet.gate=anneal", "subnet.hold=0.5")
    Recipe().updated("subnet.gate=anneal", "subnet.hold=0.5", "subnet.start=baseline")


def test_a_recipe_of_a_later_version_says_how_to_read_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("subnet: {epochs: 1, later: 3}\n")
    with pytest.raises(UserError) as refused:
        Recipe.of_run(tmp_path)
    assert str(refused.value).startswith(
        f"'{tmp_path / 'recipe.yaml'}' has no field 'subnet.later'; "
    )
    assert str(refused.value).endswith("(if a later version wrote it: update updp)")
