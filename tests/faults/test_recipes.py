"""Recipes and settings of another hand: one line, soon, and nothing large."""

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.conftest import Said
from updp import Budget, Recipe, UserError
from updp.recipe.text import read_yaml

BOMB = "a: &a [0,0,0,0,0,0,0,0,0]\n" + "".join(
    f"{new}: &{new} [{','.join(f'*{old}' for _ in range(9))}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{BOMB}budget: *i\n", "line 2: a recipe has no aliases (*a)"),
        ("seed: &s [*s]\n", "line 1: a recipe has no aliases (*s)"),
        (
            f"seed: {'[' * 5000}{']' * 5000}",
            "line 1: values lie within each other more than 16 deep",
        ),
        (f"seed: {'{a: ' * 5000}", "line 1: values lie within each other more than 16 deep"),
        (f"seed: {'9' * 5000}", "line 1: a value has more than 1,000 characters"),
        (f"a: {'x ' * 200_000}", "it has more than 262,144 bytes"),
        ("seed: 2001-99-99", "a value is not of its kind: month must be in 1..12"),
        (
            "seed: !!float abc",
            "a value is not of its kind: could not convert string to",
        ),
        ("seed: !!timestamp abc", "a value is not of its kind: 'NoneType' object"),
        ("seed: !!python/object/apply:os.system [id]", "line 1: could not determine a constructor"),
        ("seed: 1\ndata: {}\nseed: 2", "line 3: 'seed' is given twice"),
        ("seed: [", "line 1: expected the node content, but found '<stream end>'"),
        ("seed: \x00", "unacceptable character #x0000"),
    ],
)
def test_a_hostile_recipe_is_one_line(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        Recipe.load(path)
    said = str(raised.value)
    assert said.startswith(f"recipe '{path}' cannot be read: {line}")
    assert len(said) < 400
    assert "\n" not in said


@pytest.mark.parametrize(
    ("setting", "value"),
    [("seed=010", 10), ("seed=1_000", 1000), ("seed=1e3", 1000), ("subnet.lr=1e-3", 0.001)],
)
def test_numbers_are_decimal(setting: str, value: float) -> None:
    read: Any = Recipe().updated(setting)
    for name in setting.partition("=")[0].split("."):
        read = getattr(read, name)
    assert read == value


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("seed=yes", "seed: it is neither true nor false ("),
        ("subnet.lr=on", "subnet.lr: it is neither true nor false ("),
        ("fit.ridge=[yes]", "fit.ridge: it is neither true nor false ("),
        ("seed=1:30", "seed: it takes a whole number"),
        ("search=", "search: it has fields of its own: give some of these, or leave it out, "),
        ("candidates.include=a.*", "candidates.include: it takes a list, such as [1, 2] or "),
    ],
)
def test_what_yaml_makes_of_a_value_is_no_surprise(setting: str, why: str) -> None:
    with pytest.raises(UserError) as raised:
        Recipe().updated(setting)
    assert str(raised.value).startswith(f"--set {setting}: {why}")


def test_a_recipe_has_its_budget_as_the_command_line_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("budget: blocks=2,macs=70%\n")
    assert Recipe.load(path).budget == Budget(blocks=2, macs="70%")
    with pytest.raises(UserError, match="budget 'blocks=two' is not understood"):
        Recipe().updated("budget=blocks=two")


def test_a_file_without_an_end_is_one_line(said: Said) -> None:
    assert said("prune", "--recipe", "/dev/zero", "--model=timm/x", "--data=digits") == (
        2,
        "recipe '/dev/zero' cannot be read: it has more than 262,144 bytes",
    )
    code, line = said("prune", "--plan", "/dev/zero", "--model=timm/resnet10t", "--data=digits")
    assert code == 2
    assert line.startswith("'/dev/zero' cannot be read: ")


@pytest.mark.parametrize(
    "setting",
    [
        "seed=2001-99-99",
        "seed=!!float abc",
        f"seed={'9' * 5000}",
        f"seed=0x{'f' * 900}",
        f"seed={'[' * 3000}",
        f"{'x' * 5000}=1",
        "subnet.epochs=1e308",
        "subnet.weight_decay=1e308",
        "subnet.cutmix=1e-300",
        "fit.ridge=[-1.0]",
        "search.population=1000000000",
        "measure.batch_size=1000000000",
        "data.shift=100000",
        "data.input_size=[1, 100000, 100000]",
        "fit.rows=1000000000000",
        "candidates.include=[1]",
    ],
)
def test_a_setting_that_cannot_be_is_one_line(setting: str) -> None:
    with pytest.raises(UserError) as raised:
        Recipe().updated(setting)
    said = str(raised.value)
    assert said.startswith("--set ")
    assert len(said) < 1500
    assert "\n" not in said


VALUES = st.text(alphabet=string.printable, max_size=60)


@settings(max_examples=300)
@given(VALUES)
def test_any_value_is_read_or_refused(text: str) -> None:
    for attempt in (lambda: Recipe().updated(f"seed={text}"), lambda: Budget.parse(f"macs={text}")):
        try:
            attempt()
        except UserError as error:
            assert len(str(error)) < 1500  # noqa: PT017
    try:
        read_yaml(text)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
