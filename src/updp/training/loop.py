"""The training loop: a run killed at any moment resumes bit by bit.

All state is in the weights, their moving average, the optimiser, the scale of float16 losses and
the step's number. The order of images, augmentation, mixing, sampled plans, dropout, the learning
rate and the decay of the average are pure functions of seed and step. Several processes train
alike, each on its share of every batch, with gradients and BatchNorm statistics of all of it.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from updp.data.feed import Feed
from updp.io import processes
from updp.io.files import Figures, read_tensors, write_tensors
from updp.io.progress import Progress
from updp.io.seeds import mix
from updp.io.tracking import Curves
from updp.recipe import TrainingSettings
from updp.training.batchnorm import synchronised
from updp.training.ema import WeightAverage
from updp.training.execution import compiled, laid_out
from updp.training.mixup import mixed
from updp.training.optim import make_optimizer, make_schedule
from updp.training.precision import MixedPrecision

_log = logging.getLogger(__name__)

# Runs forward and backward, by `MixedPrecision`, on images (N, C, H, W) and targets, labels (N,) or
# class probabilities (N, classes) where images are mixed, given the number of the optimiser's step
# and the number of steps; returns figures for the log, as numbers or scalars.
_Row = dict[str, float]
Step = Callable[[Tensor, Tensor, int, int, MixedPrecision], Mapping[str, float | Tensor]]


class Trainable(Protocol):
    """A module, such as a supernet, whose weights are not simply its state dict."""

    def weights(self) -> dict[str, Tensor]:
        """All tensors by name; training changes them in place."""

    def shapes(self) -> dict[str, Any]:
        """Plain data that says which parameters it trains in."""

    def load_weights(
        self, weights: Mapping[str, Tensor], shapes: Mapping[str, Any] | None = None
    ) -> None:
        """Copy in the results of `weights` and, where they may differ, `shapes`."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """`nn.Module.parameters`."""

    def train(self, mode: bool = True) -> object:
        """`nn.Module.train`."""


def train(
    net: Trainable,
    step_function: Step,
    feed: Feed,
    recipe: TrainingSettings,
    *,
    name: str,
    seed: int,
    folder: Path,
    progress: Progress,
    curves: Curves | None = None,
    beside: Sequence[nn.Module] = (),
    compile: Sequence[nn.Module] = (),
) -> None:
    """Train `net`, resuming from the checkpoint in `folder` if there is one.

    The net ends in evaluation mode, with `recipe.ema` with the moving average of its weights.

    Args:
        step_function: forward, backward and figures of one micro-batch.
        name: the stage, for messages.
        seed: for dropout, drop path and mixing.
        folder: where `checkpoint.safetensors` and `figures.jsonl` are written.
        curves: show the rows of `figures.jsonl`, too.
        beside: further modules that a step runs, such as a teacher.
        compile: the modules to compile with `recipe.compile`.

    Raises:
        UserError: a loss or a gradient is not finite, or optimiser or precision cannot be used
            here.
    """
    with ExitStack() as stack:
        stack.enter_context(laid_out([cast(nn.Module, net), *beside], recipe.layout))
        stack.enter_context(compiled(compile if recipe.compile else ()))
        if curves is not None:
            stack.callback(curves.close)
        devices = [feed.device] if feed.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(synchronised())
        parts = recipe.accumulate
        total = round(recipe.epochs * feed.steps / parts)
        optimizer = make_optimizer(cast(nn.Module, net), recipe)
        precision = MixedPrecision(cast(nn.Module, net), recipe, feed.device, name)
        schedule = make_schedule(optimizer, recipe, total)
        average = WeightAverage(net.weights(), recipe.ema) if recipe.ema else None
        path = folder / "checkpoint.safetensors"
        figures = Figures(folder / "figures.jsonl", curves)
        start = _restore(path, net, optimizer, average, precision) if path.exists() else 0
        if start:
            _log.info("%s goes on from step %d of %d", name, start, total)
        figures.keep(lambda row: row["step"] < start)
        if start < total:
            progress.say(f"{name}: {feed.augmentation}")
        progress.begin(name, total, start)
        layout = torch.channels_last if recipe.layout == "channels_last" else torch.preserve_format

        def micro_batch(batches: Iterator[tuple[Tensor, Tensor]], step: int, part: int) -> _Row:
            images, labels = next(batches)
            position = step * parts + part
            # Dropout and drop path; each process draws for images of its own.
            torch.manual_seed(mix(seed, 2, position, *([own] if (own := processes.rank()) else [])))
            images, targets = mixed(images, labels, feed.classes, recipe, mix(seed, 4, position))
            images = images.to(memory_format=layout)
            row = step_function(images, targets, step, total, precision)
            # As numbers only now: on a GPU the first one waits for the whole step.
            return {key: float(value) for key, value in row.items()}

        net.train(recipe.norms == "train")
        saved, batches = time.monotonic(), feed.training(start * parts)
        for step in range(start, total):
            schedule.step_update(step)
            optimizer.zero_grad()
            precision.begin()
            rows = [micro_batch(batches, step, part) for part in range(parts)]
            row = _mean([row for own in processes.gather(rows) for row in own])
            norm = precision.step(optimizer, net.parameters())
            precision.check(row, norm, step)
            if average is not None:
                average.update(step)
            if step % 10 == 0 or step == total - 1:
                rate = optimizer.param_groups[0]["lr"]
                everything = {"lr": rate, "gradient": norm, **row}
                # A skipped step of float16 has none, and JSON no infinity.
                figures.add(step=step, **{k: v for k, v in everything.items() if math.isfinite(v)})
            progress.advance(" ".join(f"{k} {v:.3f}" for k, v in row.items()))
            if processes.is_first() and time.monotonic() - saved > recipe.checkpoint_seconds:
                _save(path, net, optimizer, average, precision, step + 1)
                saved = time.monotonic()
        if average is not None:
            net.load_weights(average.tensors)
        net.train(False)


def _mean(rows: Sequence[_Row]) -> _Row:
    """Mean of each figure over micro-batches, of all processes, which are of one size."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def _save(
    path: Path,
    net: Trainable,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    precision: MixedPrecision,
    step: int,
) -> None:
    tensors = {f"net.{name}": t for name, t in net.weights().items()}
    if average is not None:
        tensors |= {f"ema.{name}": t for name, t in average.tensors.items()}
    numbers: dict[str, float] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            elif value is not None:
                numbers[f"{index}.{key}"] = value
    # Some optimisers count their steps in the groups (timm's LAMB).
    groups = [
        {
            key: value.item() if isinstance(value, Tensor) else value
            for key, value in group.items()
            if isinstance(value, int | float | Tensor)
        }
        for group in optimizer.param_groups
    ]
    notes = {"step": step, "optimizer": numbers, "groups": groups, "scaler": precision.state()}
    write_tensors(path, tensors, {**notes, "shapes": net.shapes()})


def _restore(
    path: Path,
    net: Trainable,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    precision: MixedPrecision,
) -> int:
    """Load a checkpoint; return the number of steps done."""
    tensors, notes = read_tensors(path)
    own = {n[4:]: t for n, t in tensors.items() if n.startswith("net.")}
    net.load_weights(own, notes["shapes"])
    if average is not None:
        average.load({n[4:]: t for n, t in tensors.items() if n.startswith("ema.")})
    state: dict[int, dict[str, object]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    for name, value in notes["optimizer"].items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    groups = [group | saved for group, saved in zip(groups, notes["groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, own_state in optimizer.state.items():
        for key, value in own_state.items():
            # Laid out as in the run before: kernels for other strides may round differently.
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                own_state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    precision.load(notes["scaler"])
    return int(notes["step"])
