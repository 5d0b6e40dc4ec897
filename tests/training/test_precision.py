"""Half precision, layouts, accumulation and recomputation, against plain float32 training."""

import logging
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import tiny
from tests.sampling import slow
from updp import UserError
from updp.blocks import find
from updp.candidates import make_offers
from updp.io.figures import Figures
from updp.io.files import read_tensors
from updp.io.progress import Silent
from updp.models import load_model
from updp.stages.context import Context, InputHashes, InputNames
from updp.stages.subnet import train_progressively
from updp.stages.supernet import train_sandwich
from updp.supernet import Supernet
from updp.tasks import CLASSIFICATION
from updp.training.evaluate import evaluate
from updp.training.loop import train
from updp.training.precision import MixedPrecision

pytestmark = pytest.mark.usefixtures("fixed_clock")
STEPS = 1 / 35  # an epoch of one step


class Stopped(Exception):
    pass


def sandwich(
    spec: str, folder: Path, data: dict | None = None, **changes: object
) -> dict[str, Tensor]:
    """Weights after stage 1's training; the images are as they are."""
    settings = {"epochs": 3 * STEPS, "warmup": 0.0, "lr": 0.05, **changes}
    recipe = tiny.make_recipe(
        supernet=settings, data={**tiny.SETTINGS["data"], "shift": 0, **(data or {})}
    )
    net = tiny.make_net(spec, recipe)
    train_sandwich(tiny.make_context(spec, recipe, folder, net=net))
    return net.weights()


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], rtol: float = 1e-4) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=rtol, atol=1e-5, msg=name)


def test_accumulated_batches_are_one_batch_as_large(tiny_model: str, tmp_path: Path) -> None:
    spec = tiny_model.replace(":tiny", ":tokens")
    size, frozen = {"batch_size": 64}, {"norms": "frozen", "epochs": 3 / 17}
    whole = sandwich(spec, tmp_path / "whole", size, **frozen)
    parts = sandwich(spec, tmp_path / "parts", {"batch_size": 32}, **frozen, accumulate=2)
    assert_close(whole, parts)
    start = sandwich(spec, tmp_path / "start", size, epochs=0)
    assert not torch.allclose(start["model.head.weight"], whole["model.head.weight"])
    rows = [
        Figures(tmp_path / name / "supernet/figures.jsonl").rows() for name in ("whole", "parts")
    ]
    assert [row["step"] for row in rows[1]] == [0, 2]
    for one, other in zip(*rows, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("model", ["tiny", slow("tokens")])
def test_checkpointing_gives_the_same_gradients_and_statistics(
    model: str, tiny_model: str, tmp_path: Path
) -> None:
    spec = tiny_model.replace(":tiny", f":{model}")
    plain = sandwich(spec, tmp_path / "plain", optimizer="adamw")
    again = sandwich(spec, tmp_path / "again", optimizer="adamw", checkpointing=True)
    assert_close(plain, again)
    counted = [name for name in plain if name.endswith("num_batches_tracked")]
    assert all(torch.equal(plain[name], again[name]) for name in counted)


def test_checkpointing_keeps_fewer_bytes(tiny_model: str) -> None:
    net, kept = tiny.make_net(tiny_model, tiny.make_recipe()).train(), [0, 0]
    for checkpointing in (False, True):
        net.set_checkpointing(checkpointing)

        def pack(tensor: Tensor, checkpointing: bool = checkpointing) -> Tensor:
            kept[checkpointing] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(torch.randn(2, 1, 8, 8))
    assert kept[True] < kept[False] / 3


def test_channels_last_trains_the_same_and_ends_contiguous(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts: list[bool] = []
    forward = Supernet.forward

    def watched(net: Supernet, x: Tensor) -> Tensor:
        kernels = [w for w in net.weights().values() if w.ndim == 4]
        layouts.append(
            all(k.is_contiguous(memory_format=torch.channels_last) for k in (x, *kernels))
        )
        return forward(net, x)

    plain = sandwich(tiny_model, tmp_path / "plain")
    monkeypatch.setattr(Supernet, "forward", watched)
    last = sandwich(tiny_model, tmp_path / "last", layout="channels_last")
    assert len(layouts) == 13  # the first is the calibration
    assert all(layouts[1:])
    assert_close(plain, last)
    assert all(tensor.is_contiguous() for tensor in last.values())


def step_of(net: Supernet, stop: int | None, scale: Callable[[int], float]) -> Callable[..., dict]:
    def step(
        images: Tensor, labels: Tensor, number: int, total: int, precision: MixedPrecision
    ) -> dict[str, Tensor]:
        with precision.autocast():
            logits = net(images * scale(number))
            loss = F.cross_entropy(logits.float(), labels)
        assert logits.dtype == torch.float16
        precision.backward(loss)
        if number == stop:
            raise Stopped
        return {"loss": loss.detach()}

    return step


def train_half(
    spec: str,
    folder: Path,
    *stops: int,
    scale: Callable[[int], float] = lambda number: 1.0,
    **changes: object,
) -> dict[str, Tensor]:
    """Train in float16, with images multiplied by `scale(step)`, stopped and continued."""
    settings = {
        "epochs": 14 * STEPS,
        "lr": 0.05,
        "checkpoint_seconds": 1e-9,
        "precision": "float16",
    }
    recipe = tiny.make_recipe(supernet={**settings, **changes})
    for stop in (*stops, None):
        net = tiny.make_net(spec, recipe)
        net.choose({"blocks.1": net.switches["blocks.1"].labels[0]})
        feed, step = tiny.make_feed(recipe), step_of(net, stop, scale)
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
            )
        except Stopped:
            continue
    return net.weights()


def overflow_twice(number: int) -> float:
    return 1e6 if number in (2, 7) else 1.0


@pytest.mark.parametrize("layout", [slow("contiguous"), "channels_last"])
def test_a_killed_float16_training_ends_the_same(
    layout: str, tiny_model: str, tmp_path: Path
) -> None:
    """The scale of the losses is halved on the way; the optimiser's state is laid out alike."""
    options = {"scale": overflow_twice, "layout": layout, "ema": 0.5}
    whole = train_half(tiny_model, tmp_path / "whole", **options)
    parts = train_half(tiny_model, tmp_path / "parts", 1, 4, 9, **options)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    for name in ("figures.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    _, notes = read_tensors(tmp_path / "whole" / "checkpoint.safetensors")
    assert notes["scaler"]["scale"] == 2.0**14
    assert all(tensor.isfinite().all() for tensor in whole.values())  # statistics, too


def test_a_skipped_step_changes_nothing(tiny_model: str, tmp_path: Path) -> None:
    once = train_half(tiny_model, tmp_path / "once", epochs=2 * STEPS, lr=1e-30)
    start = train_half(tiny_model, tmp_path / "start", epochs=0)
    skipped = train_half(
        tiny_model, tmp_path / "skipped", epochs=2 * STEPS, scale=lambda number: 1e6
    )
    assert all(torch.equal(start[name], skipped[name]) for name in start)
    assert not torch.equal(
        once["model.blocks.0.bn1.running_mean"], start["model.blocks.0.bn1.running_mean"]
    )
    rows = Figures(tmp_path / "skipped" / "figures.jsonl").rows()
    assert [row["step"] for row in rows] == [0, 1]


def test_a_long_row_of_skipped_steps_is_one_line(tiny_model: str, tmp_path: Path) -> None:
    line = r"supernet training broke down at step 17: gradients overflow float16 .*bfloat16"
    with pytest.raises(UserError, match=line):
        train_half(tiny_model, tmp_path, epochs=1, scale=lambda number: 1e6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_loss_that_is_not_finite_is_one_line(
    precision: str, tiny_model: str, tmp_path: Path
) -> None:
    recipe = tiny.make_recipe(supernet={"epochs": 1, "lr": 0.05, "precision": precision})
    net = tiny.make_net(tiny_model, recipe)

    def step(
        images: Tensor, labels: Tensor, number: int, total: int, precision: MixedPrecision
    ) -> dict[str, Tensor]:
        loss = net(images).sum()
        precision.backward(loss * 1e-3)
        return {"loss": loss.detach() * (float("inf") if number == 1 else 1)}

    line = re.escape(
        "supernet training broke down at step 2: the figure 'loss' is inf; lower supernet.lr=0.05"
    )
    with pytest.raises(UserError, match=line.replace("inf", "-?inf")):
        train(
            net,
            step,
            tiny.make_feed(recipe),
            recipe.supernet,
            name="supernet",
            seed=3,
            folder=tmp_path,
            progress=Silent(),
        )


def test_a_precision_that_the_device_has_not_is_one_line(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> Tensor:
        raise RuntimeError("\"conv\" not implemented for 'Half'\nand more")

    monkeypatch.setattr("updp.training.precision.F", SimpleNamespace(conv2d=refuse))
    line = (
        r"supernet.precision=float16 does not work on cpu \(RuntimeError: .conv. not impl.*\): take"
    )
    with pytest.raises(UserError, match=line):
        train_half(tiny_model, tmp_path)


def test_without_a_compiler_training_goes_on_after_one_line(
    tiny_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def missing(graph: object, inputs: object) -> None:
        raise RuntimeError("no C++ compiler\nand a page of how to get one")

    monkeypatch.setattr("torch._dynamo.lookup_backend", lambda name: missing)
    plain = sandwich(tiny_model, tmp_path / "plain", random_paths=1)
    with caplog.at_level(logging.INFO, "updp"):
        eager = sandwich(tiny_model, tmp_path / "eager", random_paths=1, compile=True)
    assert_close(plain, eager)
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert lines == ["compile=true: training goes on uncompiled (RuntimeError: no C++ compiler)"]


@pytest.mark.slow
@pytest.mark.parametrize("hold", [0, 1])
def test_what_is_compiled_trains_as_what_is_not(
    hold: float, tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a lambda that rises each path compiles, with a fixed one the whole network."""
    weights = []
    for compile in (False, True):
        recipe = tiny.make_recipe(
            supernet={"epochs": 3 * STEPS, "random_paths": 1, "compile": compile},
            subnet={"epochs": 3 * STEPS, "hold": hold, "start": "baseline", "compile": compile},
        )
        net = tiny.make_net(tiny_model, recipe)
        context = tiny.make_context(tiny_model, recipe, tmp_path / str(compile), net=net)
        train_sandwich(context)
        choices = {name: switch.labels[0] for name, switch in [*net.switches.items()][1:3]}
        train_progressively(context, net, choices, context.baseline, context.feed)
        weights.append(net.weights())
        assert all(m._compiled_call_impl is None for m in (*net.modules(), context.baseline))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert_close(*weights, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_ends_as_accurate_on_the_digits(precision: str, tmp_path: Path) -> None:
    """Both stages on the demo's network, to 0.3 points on all images of the digits."""

    def load() -> nn.Module:
        return load_model("zoo/digits-resnet").eval()

    found = []
    for name in ("float32", precision):
        subnet = {"epochs": 2, "optimizer": "adamw", "lr": 2e-3, "hold": 0.5, "start": "supernet"}
        recipe = tiny.make_recipe(
            supernet={"epochs": 1, "precision": name}, subnet={**subnet, "precision": name}
        )
        model = load()
        findings = find(model, torch.randn(2, 1, 8, 8))
        offers, _ = make_offers(model, findings, recipe, torch.device("cpu"))
        net = Supernet(model, findings, {n: (o[0].candidate,) for n, o in offers.items()})
        feed = tiny.make_feed(recipe, model)
        net.calibrate(torch.cat(feed.calibration()))
        inputs = InputNames(), InputHashes("", ""), load(), tuple("0123456789"), feed, recipe
        context = Context(*inputs, root=tmp_path / name)
        context.net = net
        train_sandwich(context)
        choices = {site: switch.labels[0] for site, switch in [*net.switches.items()][1:8:2]}
        train_progressively(context, net, choices, context.baseline, feed)
        epoch = islice(feed.training(0), feed.steps)
        batches = [*feed.test(), *feed.held_out(), *epoch]
        found.append(evaluate(CLASSIFICATION, {"net": net}, batches)[0]["net"])
    assert found[1] == pytest.approx(found[0], abs=0.3)
    assert found[0] > 97
