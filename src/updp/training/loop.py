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
from typing import Any, cast

import torch
from torch import Tensor, nn

from updp.blocks.nested import Samples
from updp.data.feed import Feed
from updp.io import interrupts, processes
from updp.io.files import Figures
from updp.io.progress import Progress
from updp.io.seeds import mix
from updp.io.tracking import Curves
from updp.recipe import TrainingSettings
from updp.training.batchnorm import synchronised
from updp.training.best import BestWeights
from updp.training.checkpoint import CHECKPOINT, Checkpoint
from updp.training.ema import WeightAverage
from updp.training.execution import compiled, laid_out
from updp.training.mixup import mixed
from updp.training.optim import make_optimizer, make_schedule
from updp.training.precision import MixedPrecision
from updp.training.trainable import Trainable

_log = logging.getLogger(__name__)

_Row = dict[str, float]
# Runs forward and backward, by `MixedPrecision`, on inputs such as images (N, C, H, W), and on
# targets: labels, or class probabilities (N, classes) where images are mixed. It is given the
# number of the optimiser's step and the number of steps; returns figures for the log.
Step = Callable[[Samples, Any, int, int, MixedPrecision], Mapping[str, float | Tensor]]


def train(
    net: Trainable,
    step_function: Step,
    feed: Feed,
    settings: TrainingSettings,
    *,
    name: str,
    seed: int,
    folder: Path,
    progress: Progress,
    curves: Curves | None = None,
    beside: Sequence[nn.Module] = (),
    compile: Sequence[nn.Module] = (),
    score: Callable[[], float] | None = None,
    checks: int = 0,
) -> None:
    """Train `net`, resuming from the checkpoint in `folder` if there is one.

    The net ends in evaluation mode, with `settings.ema` with the moving average of its weights, and
    with `checks` with the best of those that were scored.

    Args:
        step_function: forward, backward and figures of one micro-batch.
        name: the stage, for messages.
        seed: for dropout, drop path and mixing.
        folder: where `checkpoint.safetensors` and `figures.jsonl` are written.
        curves: show the rows of `figures.jsonl`, too.
        beside: further modules that a step runs, such as a teacher.
        compile: the modules to compile with `settings.compile`.
        score: of the net in evaluation mode, on images that are not trained on; lower is better.
        checks: how often the net is scored, at even distances, beside the start; 0: never.

    Raises:
        UserError: a loss or a gradient is not finite, or optimiser or precision cannot be used
            here.
    """
    with ExitStack() as stack:
        stack.enter_context(interrupts.after_steps())
        stack.enter_context(laid_out([cast(nn.Module, net), *beside], settings.layout))
        stack.enter_context(compiled(compile if settings.compile else ()))
        if curves is not None:
            stack.callback(curves.close)
        devices = [feed.device] if feed.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(synchronised())
        parts = settings.accumulate
        total = round(settings.epochs * feed.steps / parts)
        optimizer = make_optimizer(cast(nn.Module, net), settings)
        precision = MixedPrecision(cast(nn.Module, net), settings, feed.device, name)
        schedule = make_schedule(optimizer, settings, total)
        average = WeightAverage(net.weights(), settings.ema) if settings.ema else None
        best = BestWeights(net.weights(), score, checks, total) if score and checks else None
        state = Checkpoint(net, optimizer, precision, average, best)
        path = folder / CHECKPOINT
        figures = Figures(folder / "figures.jsonl", curves)
        start = state.restore(path) if path.exists() else 0
        if start:
            _log.info("%s goes on from step %d of %d", name, start, total)
        figures.keep(lambda row: row["step"] < start)
        if start < total:
            progress.say(f"{name}: {feed.augmentation}")
        progress.begin(name, total, start)
        is_last = settings.layout == "channels_last"
        layout = torch.channels_last if is_last else torch.preserve_format

        def micro_batch(batches: Iterator[tuple[Samples, Any]], step: int, part: int) -> _Row:
            images, labels = next(batches)
            position = step * parts + part
            # Dropout and drop path; each process draws for images of its own.
            torch.manual_seed(mix(seed, 2, position, *([own] if (own := processes.rank()) else [])))
            images, targets = mixed(images, labels, feed.classes, settings, mix(seed, 4, position))
            if not isinstance(images, Tensor) or images.ndim == 4:  # maps (N, C, H, W)
                images = images.to(memory_format=layout)
            row = step_function(images, targets, step, total, precision)
            # As numbers only now: on a GPU the first one waits for the whole step.
            return {key: float(value) for key, value in row.items()}

        def check(done: int) -> None:
            if best is not None and best.is_due(done):
                net.train(False)
                found = best.consider(done, average.tensors if average else net.weights())
                if math.isfinite(found):  # infinity is no JSON
                    figures.add(step=max(done - 1, 0), held_out=found)
                net.train(settings.norms == "train")

        net.train(settings.norms == "train")
        if not start:
            check(0)
        saved, batches = time.monotonic(), feed.training(start * parts)
        for step in range(start, total):
            schedule.step_update(step)
            optimizer.zero_grad()
            precision.begin()
            rows = [micro_batch(batches, step, part) for part in range(parts)]
            # All processes stop after the same step.
            told = processes.gather((rows, interrupts.requested()))
            row = _mean([row for rows, _ in told for row in rows])
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
            check(step + 1)
            alone = len(told) == 1  # then what came during the step counts, too
            signal = interrupts.requested() if alone else max(number for _, number in told)
            due = signal or time.monotonic() - saved > settings.checkpoint_seconds
            if processes.is_first() and due:
                state.save(path, step + 1)
                saved = time.monotonic()
            if signal:
                raise interrupts.Stopped(signal, f" after step {step + 1} of {total}")
        if best is not None:
            net.load_weights(best.tensors)
            progress.say(f"{name}: kept the weights after {best.step} of {total} steps")
        elif average is not None:
            net.load_weights(average.tensors)
        net.train(False)


def _mean(rows: Sequence[_Row]) -> _Row:
    """Mean of each figure over micro-batches, of all processes, which are of one size."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
