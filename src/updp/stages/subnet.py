"""Stage 3: fit the plan, then train it, at once or progressively.

Progressive training raises lambda from 0 (the baseline's block) to 1 (the pruned block).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from updp.candidates import Form
from updp.data.feed import Feed
from updp.io.progress import Progress
from updp.io.seeds import mix
from updp.recipe import SubnetSettings
from updp.stages.context import Context, StageKey
from updp.supernet import FitRecord, Supernet, fit_plan
from updp.training.features import comparable, feature_loss, tapped
from updp.training.loop import train
from updp.training.losses import classification, distillation
from updp.training.precision import MixedPrecision

START = "start.safetensors"  # the plan's weights after the fit


class SubnetKey(StageKey):
    """The settings of the training, the point of the front, the teacher."""

    FILE: ClassVar[str] = "subnet/key.json"
    subnet: dict[str, Any]
    pick: str = ""
    teacher: str = ""
    teacher_weights: str = ""


def make_key(context: Context) -> SubnetKey:
    """The key of this stage."""
    return SubnetKey(
        subnet=context.recipe.subnet.decisive(),
        pick=context.pick,
        teacher=context.names.teacher,
        teacher_weights=context.hashes.teacher,
    )


def run(context: Context) -> None:
    """Write `weights.safetensors`, and after a fit `start.safetensors` and `fit.json`."""
    settings, feed = context.recipe.subnet, context.feed
    net = context.make_supernet() if settings.start == "baseline" else context.net
    if settings.start != "baseline":
        context.load_weights(net, "supernet")
    if settings.start == "fit":
        _fit(context, net)
    if settings.all_images:
        feed = feed.with_held_out()
    other = context.teacher
    teacher = context.baseline if other is None else other.to(context.device)
    train_progressively(context, net, context.found_plan().choices, teacher, feed)
    context.save_weights(net, "subnet")


def _fit(context: Context, net: Supernet) -> None:
    """Load the plan's closed-form start, fitted unless an interrupted run has left it."""
    if not (context.folder("subnet") / START).exists():
        progress, settings = context.progress, context.recipe.fit
        images = context.feed.calibration(settings.images)
        rows = fit_plan(
            net,
            context.found_plan().choices,
            images,
            settings,
            progress.advance,
            lambda steps: progress.begin("subnet: fitting", steps),
        )
        FitRecord(rows=tuple(rows)).write(context.root)
        context.save_weights(net, "subnet", START)
    context.load_weights(net, "subnet", START)


def train_progressively(
    context: Context, net: Supernet, choices: Mapping[str, str], teacher: nn.Module, feed: Feed
) -> None:
    """Train `net` under a plan, lambda from 0 to 1 (UPDP, *Progressive subnet training*).

    The loss is (1 - distill) * label loss + distill * distillation loss + features * feature loss,
    the last at the ends of the pruned blocks (see `training.features`).

    Args:
        context: settings, progress and curves.
        net: the supernet; its weights are trained in place.
        choices: the candidate's label for each pruned site.
        teacher: the baseline, or another model for the same images; `subnet.features` needs the
            baseline.
        feed: the training images.
    """
    settings = context.recipe.subnet
    teacher.eval()
    net.choose(choices)
    forms = [net.switches[name].form(label) for name, label in choices.items()]
    early = settings.merge == "ramp" and settings.start != "fit"  # fitted forms are merged already
    for form in forms if early else ():
        # The optimiser is made before the forms collapse, and must hold the parameters of both.
        form.set_shape("reserved")
    net.set_checkpointing(settings.checkpointing)
    # As one graph, where what runs stays the same; hooks and second runs need calls of their own.
    is_fixed = settings.hold == 1 and not (settings.features or settings.checkpointing)
    whole = [net, teacher]
    paths = _feature_paths(net, teacher, feed, context.progress) if settings.features else []

    with tapped(net.model, paths) as mine, tapped(teacher, paths) as theirs:

        def step(
            images: Tensor, targets: Tensor, number: int, total: int, precision: MixedPrecision
        ) -> dict[str, float | Tensor]:
            lam = ramp(number, total, settings)
            net.set_lambda(lam, settings.gate)
            if early:
                _merge_early(number, total, settings, forms)
            with precision.autocast():
                loss, figures = losses(images, targets)
            precision.backward(loss)
            return {"loss": loss.detach(), "lambda": lam, **figures}

        def losses(images: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            wanted = None
            if settings.distill or paths:
                with torch.no_grad():
                    wanted = teacher(images)
            logits = net(images)
            labels = classification(logits, targets, settings.label_smoothing)
            loss = (1 - settings.distill) * labels
            if settings.distill and wanted is not None:
                loss = loss + settings.distill * distillation(logits, wanted, settings.temperature)
            if not paths:
                return loss, {}
            apart = feature_loss(mine(), theirs())
            return loss + settings.features * apart, {"features": apart.detach()}

        train(
            net,
            step,
            feed,
            settings,
            name="subnet",
            seed=mix(context.recipe.seed, 30),
            folder=context.folder("subnet"),
            progress=context.progress,
            curves=context.board.curves("subnet"),
            beside=[teacher],
            compile=whole if is_fixed else net.paths(),
        )
    net.set_lambda(1.0)


def _merge_early(step: int, total: int, settings: SubnetSettings, forms: Sequence[Form]) -> None:
    """Collapse the forms at the first step at which lambda is 1."""
    before = ramp(step - 1, total, settings) if step else 0.0
    if before < 1 and ramp(step, total, settings) == 1:
        for form in forms:
            form.set_shape("collapsed")


def _feature_paths(net: Supernet, teacher: nn.Module, feed: Feed, progress: Progress) -> list[str]:
    """Paths of the pruned blocks whose outputs can be compared with the baseline's."""
    blocks = net.pruned_blocks()
    paths = comparable(net.model, teacher, blocks, feed.calibration()[0][:2])
    if left := [block for block in blocks if block not in paths]:
        progress.say(f"subnet.features: no one tensor to compare at {', '.join(left)}")
    return paths


def ramp(step: int, total: int, settings: SubnetSettings) -> float:
    """Lambda at `step` of `total`: from 0 to 1 over the first share `1 - hold` of the steps.

    It follows t, or (1 - cos(pi t)) / 2 with the cosine schedule.
    """
    length = (1 - settings.hold) * total
    t = min(1.0, step / length) if length > 0 else 1.0
    return t if settings.schedule == "linear" else (1 - math.cos(math.pi * t)) / 2
