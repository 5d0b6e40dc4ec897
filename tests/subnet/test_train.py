import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from updp.engine.files import Figures, read_tensors
from updp.engine.progress import Silent
from updp.models import load_model
from updp.recipe import Subnet
from updp.subnet import ramp, train


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("hold", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_lambda_rises_from_0_to_1_and_stays(schedule: str, hold: float, total: int) -> None:
    settings = Subnet(schedule=schedule, hold=hold)
    values = [ramp(step, total, settings) for step in range(total + 1)]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)
    assert values[0] == (1 if hold == 1 else 0)
    assert values[-1] == 1
    for step, value in enumerate(values):
        if step >= (1 - hold) * total:
            assert value == 1
        elif step:
            assert 0 < value < 1


def test_shapes_of_the_two_ramps() -> None:
    linear, cosine = Subnet(schedule="linear", hold=0.5), Subnet(schedule="cosine", hold=0.5)
    assert [ramp(s, 8, linear) for s in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    expected = [(1 - math.cos(math.pi * t / 4)) / 2 for t in range(5)]
    assert [ramp(s, 8, cosine) for s in range(5)] == pytest.approx(expected)


@pytest.mark.usefixtures("fixed_clock")
@pytest.mark.parametrize(("gate", "model"), [("blend", "tiny"), ("anneal", "tokens")])
def test_training_ends_at_the_pruned_block(
    gate: str, model: str, tiny_model: str, tmp_path: Path
) -> None:
    spec = tiny_model.replace(":tiny", f":{model}")
    recipe = tiny.make_recipe(subnet={"epochs": 0.3, "gate": gate, "hold": 0.3})
    net = tiny.make_net(spec, recipe)
    teacher = load_model(spec, seed=1).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    choices = {"blocks.1": net.switches["blocks.1"].labels[0]}
    folder = tmp_path / "subnet"
    train(net, choices, teacher, tiny.make_feed(recipe), recipe, folder, Silent())

    rows = Figures(folder / "figures.jsonl").rows()
    assert (rows[0]["lambda"], rows[-1]["lambda"]) == (0, 1)
    weights, _ = read_tensors(folder / "weights.safetensors")
    assert weights.keys() == net.weights().keys()
    assert all(torch.equal(weights[name], value) for name, value in net.weights().items())
    # The teacher taught and did not learn.
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())

    # The baseline's path of the pruned site is not run any more.
    assert {switch.progress for switch in net.switches.values()} == {1.0}

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the baseline's path was run")

    net.switches["blocks.1"].keep = Broken()
    x = torch.randn(2, 1, 8, 8)
    net.eval()(x)
    net.switches["blocks.0"].keep = Broken()
    with pytest.raises(AssertionError):
        net(x)
