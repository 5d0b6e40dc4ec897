import math

import pytest
import torch
from torch import nn

from updp import UserError
from updp.recipe.training import DECAYS, TrainingSettings
from updp.training import optim as optimise
from updp.training.optim import make_optimizer, make_schedule


def rates(recipe: TrainingSettings, total: int) -> list[float]:
    optimizer = make_optimizer(nn.Linear(2, 2), recipe)
    schedule = make_schedule(optimizer, recipe, total)
    found = []
    for step in range(total):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def expected(recipe: TrainingSettings, t: float) -> float:
    """The docstring's formulas."""
    rate = recipe.decay_rate or {"poly": 1.0, "step": 0.1}.get(recipe.decay, 1.0)
    return {
        "cosine": (1 + math.cos(math.pi * t)) / 2,
        "tanh": (1 - math.tanh(10 * t - 7)) / 2,
        "poly": (1 - t) ** rate,
        "step": rate ** math.floor(t / recipe.decay_every + 1e-9),
        "constant": 1.0,
    }[recipe.decay]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("changes", [{}, {"decay_rate": 0.5, "decay_every": 0.25}])
def test_every_decay_follows_its_formula(decay: str, changes: dict) -> None:
    recipe = TrainingSettings(lr=0.2, warmup=0.2, decay=decay, **changes)
    found = rates(recipe, 40)
    start, goal = 0.002, (0.2 * expected(recipe, 8 / 40) if decay == "tanh" else 0.2)
    for step in range(8):
        assert found[step] == pytest.approx(start + (goal - start) * step / 8)
    for step in range(8, 40):
        assert found[step] == pytest.approx(0.2 * expected(recipe, step / 40)), step


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("total", [0, 1, 2])
def test_schedules_of_very_short_stages_start_at_the_learning_rate(decay: str, total: int) -> None:
    found = rates(TrainingSettings(lr=0.1, warmup=0.0, decay=decay), total)
    assert found[:1] == pytest.approx([0.1][:total])


def test_momentum_and_betas_reach_the_optimiser() -> None:
    net = nn.Linear(2, 2)
    sgd = make_optimizer(net, TrainingSettings(momentum=0.7))
    assert {group["momentum"] for group in sgd.param_groups} == {0.7}
    assert make_optimizer(net, TrainingSettings(optimizer="adamw")).defaults["betas"] == (
        0.9,
        0.999,
    )
    adamw = make_optimizer(net, TrainingSettings(optimizer="adamw", betas=(0.8, 0.95)))
    assert {group["betas"] for group in adamw.param_groups} == {(0.8, 0.95)}


def test_biases_do_not_decay() -> None:
    for group in make_optimizer(nn.Linear(2, 2), TrainingSettings(weight_decay=0.1)).param_groups:
        dimensions = {parameter.ndim for parameter in group["params"]}
        assert dimensions == ({2} if group["weight_decay"] else {1})


def test_an_optimiser_that_cannot_run_here_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> torch.optim.Optimizer:
        raise AssertionError("CUDA required for APEX optimizers")

    monkeypatch.setattr(optimise, "create_optimizer_v2", refuse)
    with pytest.raises(
        UserError, match="optimizer 'sgd' cannot be used here: AssertionError: CUDA"
    ):
        make_optimizer(nn.Linear(2, 2), TrainingSettings())
