"""Stage 3: train the chosen subnet progressively, lambda from 0 (baseline) to 1 (pruned)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from updp.candidates import Form
from updp.data.feed import Feed, mix
from updp.io.files import write_tensors
from updp.io.progress import Progress
from updp.io.tracking import Curves
from updp.recipe import Recipe, SubnetSettings
from updp.supernet import Supernet
from updp.training.features import comparable, feature_loss, tapped
from updp.training.loop import train as run_loop
from updp.training.losses import classification, distillation


def train(
    net: Supernet,
    choices: Mapping[str, str],
    teacher: nn.Module,
    feed: Feed,
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    curves: Curves | None = None,
) -> None:
    """Train under the plan's `choices` and write `weights.safetensors` into `folder`.

    `teacher` is the baseline as the user brought it (UPDP, *Progressive subnet training*), or
    another model that takes the same images; `subnet.features` needs the baseline. The loss is
    (1 - distill) of the labels' and distill of the teacher's logits', plus `features` of the
    teacher's features' (see `engine.features`) at the ends of the pruned blocks.
    """
    settings = recipe.subnet
    teacher.eval()
    net.choose(choices)
    forms = [net.switches[name].form(label) for name, label in choices.items()]
    early = settings.merge == "ramp" and settings.start != "fit"  # which has merged already
    for form in forms if early else ():
        form.reserve()
    paths = _feature_paths(net, teacher, feed, progress) if settings.features else []

    with tapped(net.model, paths) as mine, tapped(teacher, paths) as theirs:

        def step(images: Tensor, targets: Tensor, number: int, total: int) -> dict[str, float]:
            lam = ramp(number, total, settings)
            net.set_lambda(lam, settings.gate)
            if early:
                _merge_early(number, total, settings, forms)
            logits = net(images)
            labels = classification(logits, targets, settings.label_smoothing)
            loss = (1 - settings.distill) * labels
            figures = {}
            if settings.distill or paths:
                with torch.no_grad():
                    wanted = teacher(images)
            if settings.distill:
                loss = loss + settings.distill * distillation(logits, wanted, settings.temperature)
            if paths:
                apart = feature_loss(mine(), theirs())
                loss = loss + settings.features * apart
                figures["features"] = apart.item()
            loss.backward()  # type: ignore[no-untyped-call]
            return {"loss": loss.item(), "lambda": lam, **figures}

        seed = mix(recipe.seed, 30)
        run_loop(
            net,
            step,
            feed,
            settings,
            seed=seed,
            folder=folder,
            progress=progress,
            curves=curves,
        )
    net.set_lambda(1.0)
    write_tensors(folder / "weights.safetensors", net.weights())


def _merge_early(step: int, total: int, settings: SubnetSettings, forms: Sequence[Form]) -> None:
    """Collapse the forms at the first step at which lambda is 1.

    A run that goes on from before that step finds them collapsed, as saved weights make them.
    """
    if ramp(step, total, settings) == 1:
        if step == 0 or ramp(step - 1, total, settings) < 1:
            for form in forms:
                form.reserve()  # from what was trained until now
                form.collapse()
        return
    for form in forms:
        if form.is_collapsed:
            form.reserve()


def _feature_paths(net: Supernet, teacher: nn.Module, feed: Feed, progress: Progress) -> list[str]:
    """The pruned blocks whose outputs can be compared with the baseline's."""
    blocks = net.pruned_blocks()
    paths = comparable(net.model, teacher, blocks, feed.calibration()[0][:2])
    if left := [block for block in blocks if block not in paths]:
        progress.say(f"subnet.features: no one tensor to compare at {', '.join(left)}")
    return paths


def ramp(step: int, total: int, settings: SubnetSettings) -> float:
    """Lambda at a step: from 0 to 1 over the first share `1 - hold` of the steps.

    Linear, or cosine: (1 - cos(pi t)) / 2.
    """
    length = (1 - settings.hold) * total
    t = min(1.0, step / length) if length > 0 else 1.0
    return t if settings.schedule == "linear" else (1 - math.cos(math.pi * t)) / 2
