"""Cost of a training step, and of the loop around it.

    python -m benchmarks.speed.training                      # CPU, 32 px, 11 rounds
    python -m benchmarks.speed.training --network resnet18 --rounds 3 --loop-steps 2 --output DIR
    python -m benchmarks.speed.training --device cuda --precision bfloat16 --batch 128

Steps: those of stage 1 (sandwich: the baseline, the most pruned and two random plans), of stage 3
half-way through its ramp (progressive) and at its end (subnet), each with half of the sites
pruned, over a plain step of the baseline on the same batch: forward, cross-entropy, backward, SGD.
The forms have the shape of fitted ones, as by default. Peak memory: weights, the optimiser's state
and the most that a step has allocated at one time, over the plain step's. Loop: images per second
of `training.loop.train` over those of the body of timm's `train.py`, with the same model, data,
augmentation and optimiser.

All are timed in one process, interleaved; medians and quartiles of the ratios round by round.
Goals: sandwich 3.2, progressive 1.6, subnet 1.05, memory 1.3 at most; loop 0.97 at least.
Results: results/training-DEVICE-PRECISION.json.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.utils import AverageMeter
from torch import Tensor, nn

from benchmarks.common.data import DATA, check_data, image_size
from benchmarks.common.output import Result, device_name, make_parser, slug
from updp.blocks import Findings, find
from updp.blocks.modules import like_of
from updp.blocks.nested import Samples
from updp.candidates import make_offers
from updp.data import open_source, preprocess_for
from updp.data.batches import Batch
from updp.data.feed import Feed
from updp.io.progress import Silent
from updp.measure import Latency, Timing, compare
from updp.recipe import Recipe, TrainingSettings
from updp.stages.subnet import ProgressiveStep
from updp.stages.supernet import sandwich_step
from updp.supernet import Supernet
from updp.training.loop import Step, train
from updp.training.optim import make_optimizer, make_schedule
from updp.training.precision import MixedPrecision

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: timm.create_model("resnet18", num_classes=10),
    "deit_tiny": lambda: timm.create_model(
        "deit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=4
    ),
}
GOALS = {"sandwich": 3.2, "progressive": 1.6, "subnet": 1.05, "memory": 1.3, "loop": 0.97}
RAMP = 100  # steps of a training of which half is the ramp: number 25 is in the middle of it


class StepRun:
    """Whole steps of the optimiser on one batch, numbered `number` of `RAMP`."""

    def __init__(
        self,
        net: nn.Module,
        step: Step,
        settings: TrainingSettings,
        batch: Batch,
        number: int = 0,
    ) -> None:
        self.net, self._step, self._batch, self._number = net, step, batch, number
        self._optimizer = make_optimizer(net, settings)
        device = like_of(net).device
        self._precision = MixedPrecision(net, settings, device, "benchmark")
        self._mode = settings.norms == "train"

    def __call__(self) -> None:
        """Run one step."""
        self.net.train(self._mode)
        self._optimizer.zero_grad()
        self._precision.begin()
        row = self._step(*self._batch, self._number, RAMP, self._precision)
        sum(float(value) for value in row.values())
        self._precision.step(self._optimizer, self.net.parameters())

    def peak_bytes(self) -> int:
        """Weights, state of the optimiser, and the most that a step has allocated at one time."""
        self._optimizer.zero_grad()
        state = self._optimizer.state.values()
        held = [*self.net.parameters(), *self.net.buffers()]
        held += [v for own in state for v in own.values() if isinstance(v, Tensor)]
        return sum(t.numel() * t.element_size() for t in held) + _allocated(self)


def _allocated(function: Callable[[], object]) -> int:
    """The most bytes that a call has allocated at one time, beside what there was before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    # Each allocation and each release; what was there before may be released, too.
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    most = level = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        most = max(most, level)
    return most


def plain_step(net: nn.Module) -> Step:
    """Forward, cross-entropy and backward."""

    def step(
        images: Samples, targets: Any, number: int, total: int, precision: MixedPrecision
    ) -> dict[str, float | Tensor]:
        with precision.autocast():
            loss = F.cross_entropy(net(images), targets)
        precision.backward(loss)
        return {"loss": loss.detach()}

    return step


def steps_of(network: str, recipe: Recipe, feed: Feed) -> dict[str, StepRun]:
    """A plain step first, then those that are compared with it, each on a network of its own."""
    batch = next(feed.training(0))
    baseline = NETWORKS[network]().to(feed.device).eval()
    example = batch[0][:2]
    offers, _ = make_offers(baseline, find(baseline, example), recipe, feed.device)
    candidates = {name: [o.candidate for o in found] for name, found in offers.items()}

    def make_net() -> Supernet:
        model = NETWORKS[network]().to(feed.device).eval()
        model.load_state_dict(baseline.state_dict())
        net = Supernet(model, find(model, example), candidates)
        for switch in net.switches.values():
            for label in switch.labels:  # as a fit leaves it, which would take minutes
                switch.form(label).set_shape("collapsed")
        return net

    def progressive(number: int) -> StepRun:
        net, settings = make_net(), recipe.subnet
        pruned = list(net.switches)[::2]
        choices = {name: net.switches[name].labels[0] for name in pruned}
        step = ProgressiveStep(net, choices, baseline, settings)
        return StepRun(net, step, settings, batch, number)

    plain = NETWORKS[network]().to(feed.device)
    net = make_net()
    net.set_lambda(1.0)
    return {
        "plain": StepRun(plain, plain_step(plain), recipe.supernet, batch),
        "sandwich": StepRun(net, sandwich_step(net, recipe.supernet, 0), recipe.supernet, batch),
        "progressive": progressive(RAMP // 4),
        "subnet": progressive(RAMP),
    }


def timm_loop(model: nn.Module, feed: Feed, settings: TrainingSettings, steps: int) -> None:
    """The body of timm's `train_one_epoch`, on the batches that our loop gets."""
    optimizer = make_optimizer(model, settings)
    schedule = make_schedule(optimizer, settings, steps)
    precision, losses = MixedPrecision(model, settings, feed.device, "timm"), AverageMeter()
    parameters = list(model.parameters())
    model.train()
    for step, (images, labels) in zip(range(steps), feed.training(0), strict=False):
        with precision.autocast():
            loss = F.cross_entropy(model(images), labels)
        precision.backward(loss)
        precision.step(optimizer, parameters)  # its `NativeScaler` with --clip-grad
        optimizer.zero_grad()
        losses.update(loss.item(), len(images))
        schedule.step_update(step)


def our_loop(net: Supernet, feed: Feed, settings: TrainingSettings, steps: int) -> None:
    """As many steps of our loop, from the beginning."""
    settings = settings.model_copy(update={"epochs": steps / feed.steps})
    with tempfile.TemporaryDirectory() as folder:
        options = {"name": "loop", "seed": 0, "folder": Path(folder), "progress": Silent()}
        train(net, plain_step(net), feed, settings, **options)  # type: ignore[arg-type]


def inverse(latency: Latency) -> Result:
    """The ratio of a function's time to the first one's, with quartiles."""
    speedup = latency.speedup
    return asdict(Timing(1 / speedup.median, 1 / speedup.high, 1 / speedup.low))


def measure(network: str, options: argparse.Namespace) -> Result:
    """All figures of one network."""
    training = {"precision": options.precision, "layout": "contiguous"}
    recipe = Recipe.model_validate(
        {
            "data": {"batch_size": options.batch},
            "candidates": {"timed": 1, "widths": []},
            "measure": {"batch_size": options.batch, "rounds": 3},
            "supernet": {**training, "epochs": 1},
            "subnet": {**training, "hold": 0.5},
        }
    )
    device = torch.device(options.device)
    source = open_source(str(DATA / "cifar10"), input_size=None)
    preprocess = preprocess_for(nn.Identity(), image_size(source))
    feed = Feed(source, preprocess, recipe.data, seed=0, device=device)
    runs = steps_of(network, recipe, feed)
    supernet = runs["sandwich"].net
    assert isinstance(supernet, Supernet)
    sites = len(supernet.switches)
    times = compare(runs, rounds=options.rounds, round_seconds=0.2)
    memory = {name: run.peak_bytes() for name, run in runs.items()}
    model = NETWORKS[network]().to(device)
    net = Supernet(NETWORKS[network]().to(device), Findings((), (), {}), {})
    steps, settings = options.loop_steps, recipe.supernet
    loops = compare(
        {
            "timm": lambda: timm_loop(model, feed, settings, steps),
            "updp": lambda: our_loop(net, feed, settings, steps),
        },
        rounds=options.rounds,
    )
    images = 1e3 * options.batch * steps
    return {
        "network": network,
        "batch": options.batch,
        "sites": sites,
        "step_ms": {name: asdict(latency.ms) for name, latency in times.items()},
        "cost": {name: inverse(times[name]) for name in islice(times, 1, None)},
        "peak_bytes": memory,
        "memory": {name: memory[name] / memory["plain"] for name in islice(memory, 1, None)},
        "images_per_second": {name: images / loop.ms.median for name, loop in loops.items()},
        "loop": asdict(loops["updp"].speedup),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--rounds", type=int, default=11, help="interleaved repetitions")
    parser.add_argument("--loop-steps", type=int, default=20, help="steps of each loop a round")
    options = parser.parse_args(arguments)
    check_data()
    rows = []
    with warnings.catch_warnings(action="ignore"):
        for network in options.network:
            row = measure(network, options)
            print(network, {name: f"{cost['median']:.2f}" for name, cost in row["cost"].items()})
            print(network, "memory", {n: f"{v:.2f}" for n, v in row["memory"].items()})
            print(network, "loop", f"{row['loop']['median']:.3f}")
            rows.append(row)
    where = device_name(torch.device(options.device))
    result = {"device": where, "precision": options.precision, "goals": GOALS, "rows": rows}
    options.output.write(f"training-{slug(where)}-{options.precision}", result)


if __name__ == "__main__":
    main()
