import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests import tiny
from updp.io.figures import Figures
from updp.io.progress import Progress, Silent
from updp.models import load_model
from updp.recipe import Recipe, SubnetSettings
from updp.stages.subnet import ramp, train_progressively
from updp.supernet import Supernet


def train(
    spec: str,
    net: Supernet,
    choices: dict[str, str],
    teacher: nn.Module,
    recipe: Recipe,
    root: Path,
    progress: Progress | None = None,
) -> list[dict]:
    """Stage 3's training in a run directory `root`; what it logged."""
    context = tiny.make_context(spec, recipe, root, progress=progress or Silent())
    train_progressively(context, net, choices, teacher, context.feed)
    return Figures(root / "subnet" / "figures.jsonl").rows()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("hold", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_lambda_rises_from_0_to_1_and_stays(schedule: str, hold: float, total: int) -> None:
    settings = SubnetSettings(schedule=schedule, hold=hold)
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
    linear, cosine = (
        SubnetSettings(schedule="linear", hold=0.5),
        SubnetSettings(schedule="cosine", hold=0.5),
    )
    assert [ramp(s, 8, linear) for s in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    expected = [(1 - math.cos(math.pi * t / 4)) / 2 for t in range(5)]
    assert [ramp(s, 8, cosine) for s in range(5)] == pytest.approx(expected)


@pytest.mark.usefixtures("fixed_clock")
@pytest.mark.parametrize(("gate", "model"), [("blend", "tiny"), ("anneal", "tokens")])
def test_training_ends_at_the_pruned_block(
    gate: str, model: str, tiny_model: str, tmp_path: Path
) -> None:
    spec = tiny_model.replace(":tiny", f":{model}")
    recipe = tiny.make_recipe(
        subnet={"epochs": 0.3, "gate": gate, "hold": 0.3, "start": "baseline"}
    )
    net = tiny.make_net(spec, recipe)
    teacher = load_model(spec, seed=1).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    choices = {"blocks.1": net.switches["blocks.1"].labels[0]}
    rows = train(spec, net, choices, teacher, recipe, tmp_path)
    assert (rows[0]["lambda"], rows[-1]["lambda"]) == (0, 1)
    # The teacher taught and did not learn.
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())

    # The baseline's path of the pruned site is not run any more.
    assert {switch.lam for switch in net.switches.values()} == {1.0}

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the baseline's path was run")

    net.switches["blocks.1"].keep = Broken()
    x = torch.randn(2, 1, 8, 8)
    net.eval()(x)
    net.switches["blocks.0"].keep = Broken()
    with pytest.raises(AssertionError):
        net(x)


def feature_rows(
    spec: str, folder: Path, choices: dict[str, str] | None = None, **changes: object
) -> list[dict]:
    """One step with a model that has neither dropout nor statistics of a batch."""
    recipe = tiny.make_recipe(
        subnet={"epochs": 1 / 35, "features": 0.5, "gate": "blend", "warmup": 0, **changes}
    )
    net, teacher = tiny.make_net(spec, recipe), load_model(spec, seed=1)
    choices = {"blocks.1": net.switches["blocks.1"].labels[0]} if choices is None else choices
    rows = train(spec, net, choices, teacher, recipe, folder)
    assert not any(m._forward_hooks for m in (*net.modules(), *teacher.modules()))
    return rows


@pytest.mark.usefixtures("fixed_clock")
def test_features_cost_nothing_while_the_block_is_its_own(tiny_model: str, tmp_path: Path) -> None:
    spec = tiny_model.replace(":tiny", ":tokens")
    (row,) = feature_rows(spec, tmp_path / "start", hold=0)  # lambda = 0
    assert (row["lambda"], row["features"]) == (0, 0)
    (row,) = feature_rows(spec, tmp_path / "pruned", hold=1)
    assert row["features"] > 0
    (row,) = feature_rows(spec, tmp_path / "kept", choices={})
    assert "features" not in row


@pytest.mark.usefixtures("fixed_clock")
def test_features_are_those_at_the_ends_of_the_pruned_blocks(
    tiny_model: str, tmp_path: Path
) -> None:
    """Of the first step, from the weights before it: against hooks of our own."""
    spec = tiny_model.replace(":tiny", ":tokens")
    changes = {"hold": 1, "distill": 0.0, "norms": "train"}
    (with_features,) = feature_rows(spec, tmp_path / "with", **changes)
    (without,) = feature_rows(spec, tmp_path / "without", **changes, features=0)
    added = with_features["loss"] - without["loss"]
    assert added == pytest.approx(0.5 * with_features["features"], rel=1e-4)

    recipe = tiny.make_recipe(subnet={"epochs": 1 / 35, **changes})
    net, teacher = tiny.make_net(spec, recipe), load_model(spec, seed=1)
    net.choose({"blocks.1": net.switches["blocks.1"].labels[0]})
    outputs: list[Tensor] = []
    for model in (net.model, teacher):
        model.blocks[1].register_forward_hook(lambda *call: outputs.append(call[2].double()))
    net.train()
    images, _ = next(tiny.make_feed(recipe).training(0))
    net(images)
    teacher.eval()(images)
    mine, wanted = outputs
    expected = ((mine - wanted) ** 2).mean() / ((wanted - wanted.mean()) ** 2).mean()
    assert with_features["features"] == pytest.approx(expected.item(), rel=1e-4)


EARLY = {
    "epochs": 12 / 35,
    "hold": 0.5,
    "start": "baseline",
    "merge": "ramp",
    "checkpoint_seconds": 1e-9,
}


@pytest.mark.usefixtures("fixed_clock")
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_merged_at_the_end_of_the_ramp_the_merged_operators_are_trained(
    ema: float, tiny_model: str, tmp_path: Path
) -> None:
    """Killed before, at and after that step, it ends bit by bit as one that was not."""
    recipe = tiny.make_recipe(subnet={**EARLY, "ema": ema})
    feed = tiny.make_feed(recipe)

    def run(folder: Path, stop: int) -> Supernet:
        class Stop(Silent):
            done = 0

            def advance(self, text: str = "", count: int = 1) -> None:
                self.done += 1
                if self.done == stop + 1:  # its checkpoint is that of the step before
                    raise KeyboardInterrupt

        net = tiny.make_net(tiny_model, recipe)
        choices = {name: switch.labels[0] for name, switch in net.switches.items()}
        train(tiny_model, net, choices, load_model(tiny_model, seed=1), recipe, folder, Stop())
        return net

    whole = run(tmp_path / "whole", 99)
    forms = [switch.form(switch.labels[0]) for switch in whole.switches.values()]
    assert all(form.shape == "collapsed" for form in forms)
    weights = whole.weights()
    images = next(iter(feed.held_out()))[0]
    assert torch.allclose(whole(images), whole.merged()(images), atol=1e-5)
    for stop in (2, 6, 9):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, stop)
        again = run(folder, 99).weights()
        assert all(torch.equal(value, again[name]) for name, value in weights.items())


@pytest.mark.usefixtures("fixed_clock")
@pytest.mark.parametrize(("hold", "first"), [(0.5, 6), (1, 0), (0, 0)])
def test_the_average_is_one_of_merged_operators_once_blocks_merge(
    hold: float, first: int, tiny_model: str, tmp_path: Path
) -> None:
    """In float64, from the weights before and after each step; before, they idle."""
    recipe = tiny.make_recipe(subnet={**EARLY, "hold": hold, "ema": 0.6, "lr": 0.1})
    net = tiny.make_net(tiny_model, recipe)
    choices = {name: switch.labels[0] for name, switch in net.switches.items()}
    before: list[dict[str, Tensor]] = []
    after: list[dict[str, Tensor]] = []

    def weights() -> dict[str, Tensor]:
        return {name: t.double() for name, t in net.weights().items()}

    class Watched(Silent):
        def advance(self, text: str = "", count: int = 1) -> None:
            after.append(weights())

    with register_optimizer_step_pre_hook(lambda *_: before.append(weights())):
        teacher = load_model(tiny_model, seed=1)
        train(tiny_model, net, choices, teacher, recipe, tmp_path, Watched())
    expected = before[first]
    for number, now in enumerate(after[first:]):
        decay = min(0.6, (1 + number) / (10 + number))
        expected = {n: decay * t + (1 - decay) * now[n] for n, t in expected.items()}
    for name, value in net.weights().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("fixed_clock")
def test_features_are_learnt(tiny_model: str, tmp_path: Path) -> None:
    spec = tiny_model.replace(":tiny", ":tokens")
    rows = feature_rows(
        spec, tmp_path, hold=1, epochs=2, features=10, lr=0.05, distill=0.0, warmup=0.1
    )
    assert rows[-1]["features"] < 0.7 * rows[0]["features"]


@pytest.mark.usefixtures("fixed_clock")
def test_a_block_without_one_tensor_is_left_out_and_named(tiny_model: str, tmp_path: Path) -> None:
    class Listed(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (super().forward(x),)

    class Chain(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for block in self:
                x = block(x)
                x = x[0] if isinstance(x, tuple) else x
            return x

    class Told(Silent):
        def say(self, text: str) -> None:
            lines.append(text)

    lines: list[str] = []
    recipe = tiny.make_recipe(subnet={"epochs": 1 / 35, "features": 1.0})
    net, teacher = tiny.make_net(tiny_model, recipe), load_model(tiny_model, seed=1)
    first, second, *others = teacher.blocks
    teacher.blocks = Chain(first, Listed(second), *others)
    choices = {name: net.switches[name].labels[0] for name in ("blocks.1", "blocks.2")}
    (row,) = train(tiny_model, net, choices, teacher, recipe, tmp_path, Told())
    assert "subnet.features: no one tensor to compare at blocks.1" in lines
    assert row["features"] > 0


@pytest.mark.slow  # as for the supernet
@pytest.mark.usefixtures("fixed_clock")
def test_labels_are_smoothed_and_mixed(tiny_model: str, tmp_path: Path) -> None:
    def loss(name: str, **changes: object) -> float:
        (row,) = feature_rows(tiny_model, tmp_path / name, features=0, **changes)
        return row["loss"]

    labels = {"plain": {}, "smooth": {"label_smoothing": 0.4}, "mix": {"mixup": 9}}
    assert len({loss(name, distill=0.5, **changes) for name, changes in labels.items()}) == 3
    # The teacher's logits alone know no labels, but see the same mixed images.
    plain, smooth, mix = (
        loss(f"{name}-logits", distill=1, **changes) for name, changes in labels.items()
    )
    assert plain == smooth != mix
    blends = [loss(f"blends-{n}", distill=1, blended=True) for n in range(2)]
    assert blends[0] == blends[1] not in (plain, mix)
