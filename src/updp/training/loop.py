"""The training loop: a run killed at any moment resumes bit by bit.

All state is in the weights, their moving average, the optimiser, the scale of float16 losses and
the step number. The order of images, augmentation, mixing, sampled plans, dropout, the learning
rate and the decay of the average are pure functions of seed and step. Several processes train the
same network, each on its share of every batch, with gradients and statistics of the whole batch.
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
from updp.io.figures import Figures
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
from updp.training.optim import make_optimizer, make_schedule, whole_steps
from updp.training.precision import MixedPrecision
from updp.training.trainable import Trainable

_log = logging.getLogger(__name__)

_Row = dict[str, float]
# Runs forward and backward with `MixedPrecision`, on inputs such as images (N, C, H, W) and
# targets: labels, or class probabilities (N, classes) if images are mixed. It also gets the number
# of the current step and the total number of steps; it returns figures for the log.
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
    averaged: int = 0,
) -> None:
    """Train `net`, resuming from the checkpoint in `folder` if there is one.

    The net ends in evaluation mode; with `settings.ema` it has the moving average of its weights,
    with `checks` the best of the scored weights.

    Args:
        step_function: forward, backward and figures of one micro-batch.
        name: the stage, for messages.
        seed: seed of dropout, drop path and mixing.
        folder: where `checkpoint.safetensors` and `figures.jsonl` are written.
        curves: further destination for the rows of `figures.jsonl`.
        beside: further modules that a step runs, such as a teacher.
        compile: the modules to compile with `settings.compile`.
        score: scores the net in evaluation mode on images not trained on; lower is better.
        checks: number of scorings at even distances, after the one at the start; 0: none at all.
        averaged: the first step of the moving average, see `WeightAverage`.

    Raises:
        UserError: a loss or a gradient is not finite, or optimiser or precision cannot be used
            here.
    """
    if not count_steps(feed, settings):  # a net without trainable weights has no optimiser
        net.train(False)
        if curves is not None:
            curves.close()
        return
    with ExitStack() as stack:
        stack.enter_context(interrupts.after_steps())
        stack.enter_context(laid_out([cast(nn.Module, net), *beside], settings.layout))
        stack.enter_context(compiled(compile if settings.compile else ()))
        if curves is not None:
            stack.callback(curves.close)
        devices = [feed.device] if feed.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(synchronised())
        run = _Training(net, step_function, feed, settings, name=name, seed=seed, folder=folder)
        run.figures.curves = curves
        run.choose_weights(score, checks, averaged)
        run.restore()
        if run.done < run.total:
            progress.say(f"{name}: {feed.augmentation}")
        progress.begin(name, run.total, run.done)
        net.train(settings.norms == "train")
        if not run.done:
            run.score_if_due()
        batches = feed.training(run.done * settings.accumulate)
        while run.done < run.total:
            row = run.step(batches)
            progress.advance(" ".join(f"{k} {v:.3f}" for k, v in row.items()))
            run.score_if_due()
            run.save()
        if message := run.finish():
            progress.say(message)


def count_steps(feed: Feed, settings: TrainingSettings) -> int:
    """Number of optimiser steps."""
    return whole_steps(settings.epochs * feed.steps / settings.accumulate)


class _Training:
    """The state of a training, and its single steps."""

    def __init__(
        self,
        net: Trainable,
        step_function: Step,
        feed: Feed,
        settings: TrainingSettings,
        *,
        name: str,
        seed: int,
        folder: Path,
    ) -> None:
        self.net, self.step_function, self.feed, self.settings = net, step_function, feed, settings
        self.name, self.seed, self.folder = name, seed, folder
        module = cast(nn.Module, net)
        self.total = count_steps(feed, settings)
        self.done = 0  # number of finished steps
        self.signals = [0]  # received by each process up to the last step
        self.optimizer = make_optimizer(module, settings)
        self.precision = MixedPrecision(module, settings, feed.device, name)
        self.schedule = make_schedule(self.optimizer, settings, self.total)
        self.average: WeightAverage | None = None
        self.best: BestWeights | None = None
        self.figures = Figures(folder / "figures.jsonl")
        self.saved = time.monotonic()

    def choose_weights(self, score: Callable[[], float] | None, checks: int, averaged: int) -> None:
        """End with averaged weights, or the best by `score`, as set; see `train`."""
        if self.settings.ema:
            self.average = WeightAverage(self.net.weights(), self.settings.ema, averaged)
        if score and checks:
            self.best = BestWeights(self.net.weights(), score, checks, self.total)

    def restore(self) -> None:
        """Continue from the checkpoint, if there is one; remove later rows of figures."""
        path = self.folder / CHECKPOINT
        if path.exists():
            self.done = self._checkpoint().restore(path)
        if self.done:
            _log.info("%s goes on from step %d of %d", self.name, self.done, self.total)
        self.figures.keep(lambda row: row["step"] < self.done)

    def step(self, batches: Iterator[tuple[Samples, Any]]) -> _Row:
        """Run one optimiser step; return its figures."""
        step, parts = self.done, self.settings.accumulate
        self.schedule.step_update(step)
        self.optimizer.zero_grad()
        self.precision.begin()
        rows = [self._micro_batch(batches, step * parts + part) for part in range(parts)]
        if self.average is not None:
            self.average.begin(step)
        # Signals are exchanged, so that all processes stop after the same step.
        gathered = processes.all_gather((rows, interrupts.requested()))
        row = _mean([row for rows, _ in gathered for row in rows])
        norm = self.precision.step(self.optimizer, self.net.parameters())
        self.precision.check(row, norm, step)
        if self.average is not None:
            self.average.update(step)
        if step % 10 == 0 or step == self.total - 1:
            everything = {"lr": self.optimizer.param_groups[0]["lr"], "gradient": norm, **row}
            # A skipped float16 step has an infinite norm, which JSON cannot express.
            self.figures.add(step=step, **{k: v for k, v in everything.items() if math.isfinite(v)})
        self.done = step + 1
        self.signals = [number for _, number in gathered]
        return row

    def score_if_due(self) -> None:
        """Score the weights if a check is due, and keep the best."""
        if self.best is None or not self.best.is_due(self.done):
            return
        self.net.train(False)
        weights = self.net.weights() if self.average is None else self.average.tensors
        found = self.best.consider(self.done, weights)
        if math.isfinite(found):  # JSON has no infinity
            self.figures.add(step=max(self.done - 1, 0), held_out=found)
        self.net.train(self.settings.norms == "train")

    def save(self) -> None:
        """Write a checkpoint if it is time or a signal came; after a signal raise `Stopped`."""
        alone = len(self.signals) == 1  # then a signal since the step counts, too
        signal = interrupts.requested() if alone else max(self.signals)
        due = signal or time.monotonic() - self.saved > self.settings.checkpoint_seconds
        if processes.is_first() and due:
            self._checkpoint().save(self.folder / CHECKPOINT, self.done)
            self.saved = time.monotonic()
        if signal:
            raise interrupts.Stopped(signal, f" after step {self.done} of {self.total}")

    def finish(self) -> str:
        """Load the best or the averaged weights; return a message if the best were chosen."""
        chosen = ""
        if self.best is not None:
            self.net.load_weights(self.best.tensors)
            chosen = f"{self.name}: kept the weights after {self.best.step} of {self.total} steps"
        elif self.average is not None:
            self.net.load_weights(self.average.tensors)
        self.net.train(False)
        return chosen

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(self.net, self.optimizer, self.precision, self.average, self.best)

    def _micro_batch(self, batches: Iterator[tuple[Samples, Any]], position: int) -> _Row:
        """Forward and backward on the next images, which are micro-batch number `position`."""
        images, labels = next(batches)
        # For dropout and drop path; each process draws other numbers, as its images differ.
        own = processes.rank()
        torch.manual_seed(mix(self.seed, 2, position, *([own] if own else [])))
        mixing = mix(self.seed, 4, position)
        images, targets = mixed(images, labels, self.feed.classes, self.settings, mixing)
        if not isinstance(images, Tensor) or images.ndim == 4:  # maps (N, C, H, W)
            is_last = self.settings.layout == "channels_last"
            layout = torch.channels_last if is_last else torch.preserve_format
            images = images.to(memory_format=layout)
        row = self.step_function(images, targets, self.done, self.total, self.precision)
        # Converted to numbers only here: on a GPU the first conversion waits for the whole step.
        return {key: float(value) for key, value in row.items()}


def _mean(rows: Sequence[_Row]) -> _Row:
    """Mean of each figure over the micro-batches of all processes, which have equal sizes."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
