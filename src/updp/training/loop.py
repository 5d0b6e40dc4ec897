"""The training loop: a run killed at any moment resumes bit by bit.

All state is in the weights, their moving average, the optimiser and the step's number. The order of
images, augmentation, mixing, sampled plans, dropout, the learning rate and the decay of the
average are pure functions of seed and step.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from updp.data.feed import Feed
from updp.errors import UserError
from updp.io.files import Figures, read_tensors, write_tensors
from updp.io.progress import Progress
from updp.io.seeds import mix
from updp.io.tracking import Curves
from updp.recipe import TrainingSettings
from updp.training.ema import WeightAverage
from updp.training.mixup import mixed
from updp.training.optim import make_optimizer, make_schedule

_log = logging.getLogger(__name__)

# Runs forward and backward on images (N, C, H, W) and targets (labels (N,), or class probabilities
# (N, classes) where images are mixed), given the step's number and the number of steps; returns
# figures for the log.
Step = Callable[[Tensor, Tensor, int, int], dict[str, float]]


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
) -> None:
    """Train `net`, resuming from the checkpoint in `folder` if there is one.

    The net ends in evaluation mode, with `recipe.ema` with the moving average of its weights.

    Args:
        step_function: forward, backward and figures of one step.
        name: the stage, for messages.
        seed: for dropout, drop path and mixing.
        folder: where `checkpoint.safetensors` and `figures.jsonl` are written.
        curves: show the rows of `figures.jsonl`, too.

    Raises:
        UserError: a gradient is not finite, or the optimiser cannot be used here.
    """
    total = round(recipe.epochs * feed.steps)
    optimizer = make_optimizer(cast(nn.Module, net), recipe)
    schedule = make_schedule(optimizer, recipe, total)
    average = WeightAverage(net.weights(), recipe.ema) if recipe.ema else None
    path = folder / "checkpoint.safetensors"
    figures = Figures(folder / "figures.jsonl", curves)
    start = _restore(path, net, optimizer, average) if path.exists() else 0
    if start:
        _log.info("%s goes on from step %d of %d", name, start, total)
    figures.keep(lambda row: row["step"] < start)
    if start < total:
        progress.say(f"{name}: {feed.augmentation}")
    progress.begin(name, total, start)

    def run() -> None:
        saved = time.monotonic()
        for step, (images, labels) in zip(range(start, total), feed.training(start), strict=False):
            torch.manual_seed(mix(seed, 2, step))  # dropout, drop path
            schedule.step_update(step)
            optimizer.zero_grad()
            images, targets = mixed(images, labels, feed.classes, recipe, mix(seed, 4, step))
            row = step_function(images, targets, step, total)
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
            if not math.isfinite(norm):
                raise UserError(
                    f"{name} training broke down at step {step + 1}: a gradient is {norm:.0f}; "
                    f"lower {name}.lr={recipe.lr} (and --fresh)"
                )
            optimizer.step()
            if average is not None:
                average.update(step)
            if step % 10 == 0 or step == total - 1:
                rate = optimizer.param_groups[0]["lr"]
                figures.add(step=step, lr=rate, gradient=float(norm), **row)
            progress.advance(" ".join(f"{k} {v:.3f}" for k, v in row.items()))
            if time.monotonic() - saved > recipe.checkpoint_seconds:
                _save(path, net, optimizer, average, step + 1)
                saved = time.monotonic()

    net.train(recipe.norms == "train")
    try:
        with torch.random.fork_rng([feed.device] if feed.device.type == "cuda" else []):
            run()
    finally:
        if curves is not None:
            curves.close()
    if average is not None:
        net.load_weights(average.tensors)
    net.train(False)


def _save(
    path: Path,
    net: Trainable,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
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
    write_tensors(
        path,
        tensors,
        {"step": step, "optimizer": numbers, "groups": groups, "shapes": net.shapes()},
    )


def _restore(
    path: Path, net: Trainable, optimizer: torch.optim.Optimizer, average: WeightAverage | None
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
    return int(notes["step"])
