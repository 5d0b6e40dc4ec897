"""Arguments of the Python API: a wrong kind is one line that names it."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import PositiveInt
from torch import nn

import updp
from updp import UserError
from updp.arguments import checked

FUNCTIONS = {
    **{n: getattr(updp, n) for n in updp.__all__ if inspect.isroutine(getattr(updp, n))},
    "Budget.parse": updp.Budget.parse,
    "Plan.from_json": updp.Plan.from_json,
    "Plan.load": updp.Plan.load,
    "Recipe.load": updp.Recipe.load,
    "Recipe.updated": updp.Recipe().updated,
}
# Anything that behaves as data or as a batch will do, so what is wrong with them is found in use.
OPEN = {"data", "test", "example"}
# What is no module has lines of its own (tests/faults/test_models.py).
MODELS = {(name, "model") for name in ("prune", "estimate", "inspect")}
CASES = [
    (name, argument)
    for name, function in FUNCTIONS.items()
    for argument in inspect.signature(function).parameters
    if argument not in OPEN and (name, argument) not in MODELS
]


class Foreign:
    """What no argument takes."""


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_every_argument_of_a_public_function_says_what_it_takes(name: str, argument: str) -> None:
    function = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters
    before = [p for p in parameters.values() if p.default is p.empty and p.name != argument]
    is_several = parameters[argument].kind is inspect.Parameter.VAR_POSITIONAL
    # Arguments are looked at before anything else is, so the others need not be right.
    others = {p.name: _right(name, p.name) for p in before if p.kind is not p.VAR_POSITIONAL}
    with pytest.raises(UserError, match=rf"^\w+: {argument} is .*Foreign.*: it takes [\w ]+"):
        function(Foreign()) if is_several else function(**{argument: Foreign()} | others)


def _right(function: str, argument: str) -> Any:
    right = {"model": nn.Identity(), "baseline": nn.Identity(), "kind": nn.Identity}
    if argument in right and function != "register_candidate":
        return right[argument]
    return nn.Identity if argument in ("read", "forward") else "digits"


@checked("free")
def sample(
    model: nn.Module | str,
    shape: Sequence[PositiveInt] | None = None,
    *names: str,
    each: Callable[[int], None] | None = None,
    kind: Literal["a", "b"] | None = None,
    triple: tuple[int, int, int] = (1, 2, 3),
    flag: bool = False,
    share: float = 0.5,
    recipe: updp.Recipe | None = None,
    free: int = 0,
) -> tuple[Any, ...]:
    """A function with arguments of many kinds."""
    return model, shape, names, each, kind, triple, flag, share, recipe, free


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"model": 3}, "sample: model is 3: it takes Module | str"),
        ({"shape": "3x8x8"}, "shape is '3x8x8': it takes Sequence[positive int] | None"),
        ({"shape": (3, -8, 8)}, "shape is (3, -8, 8): it takes"),
        ({"shape": (3.0, 8.0, 8.0)}, "shape is (3.0, 8.0, 8.0): it takes"),
        ({"shape": torch.zeros(2, 3, 64, 64)}, "shape is of the type Tensor: it takes"),
        ({"each": "print"}, "each is 'print': it takes Callable[[int], None] | None"),
        ({"kind": "c"}, "kind is 'c': it takes Literal['a', 'b'] | None"),
        ({"triple": (1, 2)}, "triple is (1, 2): it takes tuple[int, int, int]"),
        ({"flag": "yes"}, "flag is 'yes': it takes bool"),
        ({"share": "0.5"}, "share is '0.5': it takes float"),
        ({"recipe": {"seed": 1}}, "recipe is {'seed': 1}: it takes Recipe | None"),
        ({"kind": "\x1b[31m"}, "kind is '\\x1b[31m': it takes"),
    ],
)
def test_a_wrong_kind_is_quoted_with_what_is_taken(given: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        sample(**{"model": "m", **given})
    assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_what_fits_is_handed_on_as_it_is() -> None:
    shape, each, recipe = [3, 8, 8], print, updp.Recipe()
    given = sample("m", shape, "x", "y", each=each, kind="b", triple=[1, 2, 3], recipe=recipe)
    assert given == ("m", shape, ("x", "y"), each, "b", [1, 2, 3], False, 0.5, recipe, 0)
    assert given[1] is shape
    assert given[8] is recipe
    assert sample("m", torch.Size([3, 8, 8]), share=1, free="anything")[1] == (3, 8, 8)
    assert sample("m", tuple(np.array([3, 8, 8])))[1] == (3, 8, 8)


def test_a_missing_or_unknown_argument_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match=r"sample\(\) missing 1 required positional argument"):
        sample()
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'colour'"):
        sample("m", colour=1)


def test_a_value_that_cannot_be_shown_is_named_by_its_type() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(UserError, match="model is of the type Broken: it takes"):
        sample(Broken())


class Residual(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = x + super().forward(x)
        return found


def network() -> nn.Module:
    block = Residual(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1))
    return nn.Sequential(block, nn.Flatten(), nn.Linear(256, 3)).eval()


@pytest.mark.usefixtures("fixed_clock")
def test_inspect_takes_the_name_of_a_recipe_and_no_batch_of_arrays() -> None:
    found = updp.inspect(network(), [1, 16, 16], "fit-only")
    assert found.shape == (1, 16, 16)
    batch = torch.zeros(2, 1, 16, 16).numpy()
    with pytest.raises(UserError, match="the example holds no tensor, but is of the type ndarray"):
        updp.inspect(network(), example=batch)
