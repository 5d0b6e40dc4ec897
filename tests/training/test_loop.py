import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import tiny
from tests.sampling import slow
from updp import Recipe, UserError
from updp.io import interrupts
from updp.io.figures import Figures
from updp.io.files import read_tensors
from updp.io.progress import Silent
from updp.supernet import Supernet
from updp.training.loop import train
from updp.training.precision import MixedPrecision

pytestmark = pytest.mark.usefixtures("fixed_clock")


class Stopped(Exception):
    pass


def settings(**changes: object) -> Recipe:
    base = {"epochs": 0.4, "lr": 0.05, "checkpoint_seconds": 1e-9, "warmup": 0.2}
    return tiny.make_recipe(supernet={**base, **changes})


def step_of(net: Supernet, stop: int | None = None) -> Callable[..., dict[str, float]]:
    def step(
        images: Tensor, labels: Tensor, number: int, total: int, precision: MixedPrecision
    ) -> dict[str, float]:
        loss = F.cross_entropy(net(images), labels)  # through a dropout
        loss.backward()
        if number == stop:
            raise Stopped
        return {"loss": loss.item()}

    return step


def run(
    spec: str,
    recipe: Recipe,
    folder: Path,
    *stops: int,
    checks: int = 0,
    score: Callable[[Supernet], float] | None = None,
) -> dict[str, Tensor]:
    """Train to the end, in a process (or so) of its own after every stop; returns the weights."""
    for stop in (*stops, None):
        torch.manual_seed(stop or 0)
        net = tiny.make_net(spec, recipe)
        net.choose({"blocks.1": net.switches["blocks.1"].labels[0]})
        feed, step = tiny.make_feed(recipe), step_of(net, stop)
        try:
            train(
                net,
                step,
                feed,
                recipe.supernet,
                name="supernet",
                seed=3,
                folder=folder,
                progress=Silent(),
                checks=checks,
                score=None if score is None else partial(score, net),
            )
        except Stopped:
            continue
        assert stop is None
        assert not net.training
    return net.weights()


@pytest.mark.parametrize(
    ("optimizer", "stops"), [slow("sgd", (0, 1, 7)), ("adamw", (5, 13)), slow("lamb", (3,))]
)
def test_a_killed_and_resumed_training_ends_the_same(
    optimizer: str, stops: tuple[int, ...], tiny_model: str, tmp_path: Path
) -> None:
    recipe = settings(optimizer=optimizer)
    whole = run(tiny_model, recipe, tmp_path / "whole")
    parts = run(tiny_model, recipe, tmp_path / "parts", *stops)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    for name in ("figures.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


EVERYTHING = {"ema": 0.9, "mixup": 0.2, "cutmix": 1.0, "decay": "step", "decay_rate": 0.5}


@pytest.mark.parametrize("stops", [slow((0,)), (1, 8, 13)])
def test_ema_weights_and_mixed_images_survive_a_restart(
    stops: tuple[int, ...], tiny_model: str, tmp_path: Path
) -> None:
    recipe = settings(optimizer="adamw", betas=(0.9, 0.99), **EVERYTHING)
    whole = run(tiny_model, recipe, tmp_path / "whole")
    parts = run(tiny_model, recipe, tmp_path / "parts", *stops)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    for name in ("figures.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # Killed after the last checkpoint, before the stage's weights were written.
    again = run(tiny_model, recipe, tmp_path / "whole")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def norm(net: Supernet) -> float:
    """A score that depends on the weights, and says when it is asked in training mode."""
    assert not net.training
    return sum(t.double().square().sum().item() for t in net.weights().values())


@pytest.mark.parametrize("ema", [slow(0.0), 0.9])
def test_checks_survive_a_restart_and_do_not_change_the_training(
    ema: float, tiny_model: str, tmp_path: Path
) -> None:
    recipe = settings(ema=ema)
    whole = run(tiny_model, recipe, tmp_path / "whole", checks=5, score=norm)
    parts = run(tiny_model, recipe, tmp_path / "parts", 0, 4, 9, checks=5, score=norm)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    for name in ("figures.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    run(tiny_model, recipe, tmp_path / "plain")
    plain, _ = read_tensors(tmp_path / "plain" / "checkpoint.safetensors")
    checked, _ = read_tensors(tmp_path / "whole" / "checkpoint.safetensors")
    assert all(torch.equal(plain[name], checked[name]) for name in plain)


@pytest.mark.parametrize(
    ("scores", "kept"), [((3, 2, 1, 2, 3), 2), ((1, 2, 3, 1, 1), 0), ((4, 4, 4, 3, 2), 4)]
)
def test_the_weights_of_the_lowest_score_are_kept(
    scores: tuple[float, ...], kept: int, tiny_model: str, tmp_path: Path
) -> None:
    asked: list[dict[str, Tensor]] = []

    def score(net: Supernet) -> float:
        asked.append({name: t.clone() for name, t in net.weights().items()})
        return scores[len(asked) - 1]

    result = run(tiny_model, settings(), tmp_path, checks=4, score=score)
    assert len(asked) == 5
    assert all(torch.equal(result[name], asked[kept][name]) for name in result)
    others = [weights for place, weights in enumerate(asked) if place != kept]
    for weights in others:
        assert any(not torch.equal(result[name], weights[name]) for name in result)
    rows = [
        row["held_out"] for row in Figures(tmp_path / "figures.jsonl").rows() if "held_out" in row
    ]
    assert rows == list(scores)


def test_training_ends_with_an_average_that_does_not_change_it(
    tiny_model: str, tmp_path: Path
) -> None:
    """The average, from the checkpoints of every step, in float64."""
    plain = run(tiny_model, settings(), tmp_path / "plain")
    recipe, folder = settings(ema=0.6), tmp_path / "average"
    net, step = tiny.make_net(tiny_model, recipe), 0
    net.choose({"blocks.1": net.switches["blocks.1"].labels[0]})
    expected = {name: t.double().clone() for name, t in net.weights().items()}
    inner = step_of(net)

    def follow() -> None:
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in net.weights().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()

    def watched(
        images: Tensor, labels: Tensor, number: int, total: int, precision: MixedPrecision
    ) -> dict[str, float]:
        nonlocal step
        if number:  # what the step before left
            follow()
            step = number
        return inner(images, labels, number, total, precision)

    feed = tiny.make_feed(recipe)
    train(
        net,
        watched,
        feed,
        recipe.supernet,
        name="supernet",
        seed=3,
        folder=folder,
        progress=Silent(),
    )
    last, _ = read_tensors(folder / "checkpoint.safetensors")
    decay = min(0.6, (1 + step) / (10 + step))
    for name, value in net.weights().items():
        trained = last[f"net.{name}"]
        assert torch.equal(trained, plain[name]), name
        if value.is_floating_point():
            wanted = decay * expected[name] + (1 - decay) * trained.double()
            torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, trained)
    assert any(not torch.equal(value, plain[name]) for name, value in net.weights().items())


def test_mixed_batches_have_shares_of_classes(tiny_model: str, tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def step(
        images: Tensor, targets: Tensor, number: int, total: int, precision: MixedPrecision
    ) -> dict[str, float]:
        seen.append(targets)
        F.cross_entropy(net(images), targets).backward()
        return {}

    recipe = settings(mixup=1.0, epochs=0.1)
    net, feed = tiny.make_net(tiny_model, recipe), tiny.make_feed(recipe)
    train(
        net,
        step,
        feed,
        recipe.supernet,
        name="supernet",
        seed=3,
        folder=tmp_path,
        progress=Silent(),
    )
    assert {targets.shape for targets in seen} == {(32, 10)}
    assert len({t[t > 0].min().item() for t in seen}) == len(seen)  # other shares in each


def test_without_a_checkpoint_training_starts_over(tiny_model: str, tmp_path: Path) -> None:
    recipe = settings(checkpoint_seconds=1e9)
    whole = run(tiny_model, recipe, tmp_path / "whole")
    again = run(tiny_model, recipe, tmp_path / "again", 12)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not (tmp_path / "again" / "checkpoint.safetensors").exists()
    assert [row["step"] for row in Figures(tmp_path / "again" / "figures.jsonl").rows()] == [
        *(0, 10, 13),
    ]


def test_rows_after_the_checkpoint_and_torn_ones_are_written_again(
    tiny_model: str, tmp_path: Path
) -> None:
    recipe = settings()
    run(tiny_model, recipe, tmp_path / "whole")
    folder = tmp_path / "parts"
    net = tiny.make_net(tiny_model, recipe)
    net.choose({"blocks.1": net.switches["blocks.1"].labels[0]})
    feed = tiny.make_feed(recipe)
    with pytest.raises(Stopped):
        train(
            net,
            step_of(net, 5),
            feed,
            recipe.supernet,
            name="supernet",
            seed=3,
            folder=folder,
            progress=Silent(),
        )
    with (folder / "figures.jsonl").open("a") as file:
        file.write('{"step": 10, "lr": 1}\n{"step": 13, "l')
    run(tiny_model, recipe, folder)
    assert (folder / "figures.jsonl").read_text() == (
        tmp_path / "whole" / "figures.jsonl"
    ).read_text()


def test_the_checkpoint_holds_the_next_step(tiny_model: str, tmp_path: Path) -> None:
    run(tiny_model, settings(), tmp_path)
    tensors, notes = read_tensors(tmp_path / "checkpoint.safetensors")
    assert notes["step"] == 14  # 0.4 epochs of 35 steps
    assert any(name.startswith("optimizer.") for name in tensors)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine(tiny_model: str, tmp_path: Path) -> None:
    recipe = settings(epochs=2, lr=0.1, warmup=0.3, checkpoint_seconds=1e9)
    run(tiny_model, recipe, tmp_path)
    rates = {row["step"]: row["lr"] for row in Figures(tmp_path / "figures.jsonl").rows()}
    assert list(rates) == [0, 10, 20, 30, 40, 50, 60, 69]
    for step, rate in rates.items():
        if step < 21:  # a straight line from a hundredth
            expected = 0.001 + (0.1 - 0.001) * step / 21
        else:
            expected = 0.1 * (1 + math.cos(math.pi * step / 70)) / 2
        assert rate == pytest.approx(expected), step


@pytest.mark.parametrize("changes", [{"epochs": 0.4, "accumulate": 32}, {"epochs": 0.01}])
def test_less_than_a_step_is_one(
    changes: dict[str, object], tiny_model: str, tmp_path: Path
) -> None:
    recipe = settings(**changes, warmup=0)
    before = tiny.make_net(tiny_model, recipe).weights()
    after = run(tiny_model, recipe, tmp_path)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["step"] == 1


def test_zero_epochs_change_nothing(tiny_model: str, tmp_path: Path) -> None:
    recipe = settings(epochs=0)
    before = tiny.make_net(tiny_model, recipe).weights()
    after = run(tiny_model, recipe, tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gradients_are_clipped(tiny_model: str, tmp_path: Path) -> None:
    """The first step of SGD with Nesterov's momentum m is 1 + m times rate times norm long."""
    changes = {"epochs": 1 / 35, "momentum": 0.5, "weight_decay": 0.0, "warmup": 0.0}
    recipe = settings(**changes, clip=1e-3, lr=1.0)
    before = tiny.make_net(tiny_model, recipe).weights()
    after = run(tiny_model, recipe, tmp_path)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    moved = [
        (after[name] - before[name]).square().sum().item()
        for name in before
        if not name.endswith(statistics)
    ]
    assert math.sqrt(sum(moved)) == pytest.approx(1.5e-3, rel=1e-2)
    (row,) = Figures(tmp_path / "figures.jsonl").rows()
    assert row["gradient"] > 1e-2


def test_a_gradient_that_is_not_finite_ends_training(tiny_model: str, tmp_path: Path) -> None:
    recipe = settings()
    net = tiny.make_net(tiny_model, recipe)

    def step(
        images: Tensor, labels: Tensor, number: int, total: int, precision: MixedPrecision
    ) -> dict[str, float]:
        (net(images).sum() * (float("nan") if number == 2 else 1)).backward()
        return {"loss": 0.0}

    folder = tmp_path / "supernet"
    with pytest.raises(UserError, match=r"supernet training broke down at step 3: .*lr=0\.05"):
        train(
            net,
            step,
            tiny.make_feed(recipe),
            recipe.supernet,
            name="supernet",
            seed=3,
            folder=folder,
            progress=Silent(),
        )
    # What was saved before is sound.
    tensors, notes = read_tensors(folder / "checkpoint.safetensors")
    assert notes["step"] == 2
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize("norms", ["train", "frozen"])
def test_frozen_norms_mean_that_the_network_trains_as_it_is_deployed(
    norms: str, tiny_model: str, tmp_path: Path
) -> None:
    recipe = settings(norms=norms)
    net, feed = tiny.make_net(tiny_model, recipe), tiny.make_feed(recipe)
    statistics = {n: t.clone() for n, t in net.weights().items() if "running_" in n}
    noise: list[bool] = []

    def step(
        images: Tensor, labels: Tensor, number: int, total: int, precision: MixedPrecision
    ) -> dict[str, float]:
        with torch.no_grad():
            noise.append(not torch.equal(net(images), net(images)))  # dropout
        F.cross_entropy(net(images), labels).backward()
        return {}

    train(
        net,
        step,
        feed,
        recipe.supernet,
        name="supernet",
        seed=3,
        folder=tmp_path,
        progress=Silent(),
    )
    assert set(noise) == {norms == "train"}
    changed = [
        not torch.equal(t, statistics[n]) for n, t in net.weights().items() if n in statistics
    ]
    assert any(changed) == (norms == "train")


@pytest.mark.parametrize("check", [2, 5])
def test_a_signal_while_the_net_is_scored_leaves_a_checkpoint(
    check: int, tiny_model: str, tmp_path: Path
) -> None:
    """Of five checks the second, and the last one, behind the last step."""
    recipe = settings(checkpoint_seconds=1e9)
    net = tiny.make_net(tiny_model, recipe)
    net.choose({"blocks.1": net.switches["blocks.1"].labels[0]})
    scored: list[int] = []
    steps: list[int] = []
    inner = step_of(net)

    def score() -> float:
        scored.append(len(steps))
        if len(scored) == check:
            os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    def step(*args: Any) -> Any:
        steps.append(args[2])
        return inner(*args)

    with pytest.raises(interrupts.Stopped), interrupts.handled():
        train(
            net,
            step,
            tiny.make_feed(recipe),
            recipe.supernet,
            name="supernet",
            seed=3,
            folder=tmp_path,
            progress=Silent(),
            checks=4,
            score=score,
        )
    assert len(steps) == scored[-1]  # none after the signal
    assert (tmp_path / "checkpoint.safetensors").exists()
