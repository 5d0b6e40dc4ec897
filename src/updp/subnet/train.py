"""Stage 3: train the chosen subnet progressively, lambda from 0 (baseline) to 1 (pruned)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from updp import recipe as recipes
from updp.engine.feed import Feed, mix
from updp.engine.files import write_tensors
from updp.engine.loop import train as run_loop
from updp.engine.losses import distillation
from updp.engine.progress import Progress
from updp.recipe import Recipe
from updp.rewrite import Supernet


def train(
    net: Supernet,
    choices: Mapping[str, str],
    teacher: nn.Module,
    feed: Feed,
    recipe: Recipe,
    folder: Path,
    progress: Progress,
) -> None:
    """Train under the plan's `choices` and write `weights.safetensors` into `folder`.

    `teacher` is the baseline as the user brought it (UPDP, *Progressive subnet training*).
    """
    settings = recipe.subnet
    teacher.eval()

    def step(images: Tensor, labels: Tensor, number: int, total: int) -> dict[str, float]:
        progress_now = ramp(number, total, settings)
        net.set_progress(progress_now, settings.gate)
        logits = net(images)
        loss = (1 - settings.distill) * F.cross_entropy(logits, labels)
        if settings.distill:
            with torch.no_grad():
                target = teacher(images)
            loss = loss + settings.distill * distillation(logits, target, settings.temperature)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.item(), "lambda": progress_now}

    net.choose(choices)
    seed = mix(recipe.seed, 30)
    run_loop(net, step, feed, settings, seed=seed, folder=folder, progress=progress)
    net.set_progress(1.0)
    write_tensors(folder / "weights.safetensors", net.weights())


def ramp(step: int, total: int, settings: recipes.Subnet) -> float:
    """Lambda at a step: from 0 to 1 over the first share `1 - hold` of the steps.

    Linear, or cosine: (1 - cos(pi t)) / 2.
    """
    length = (1 - settings.hold) * total
    t = min(1.0, step / length) if length > 0 else 1.0
    return t if settings.schedule == "linear" else (1 - math.cos(math.pi * t)) / 2
