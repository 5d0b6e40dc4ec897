"""Stage 3: fit the plan, then train it, at once or progressively.

Progressive training raises lambda from 0 (the baseline's block) to 1 (the pruned block).
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from updp.blocks.modules import to_eval
from updp.blocks.nested import Samples, join, split, tensors_in
from updp.data.feed import Feed
from updp.io import processes
from updp.io.files import content_of, read_tensors, write_tensors
from updp.io.progress import Progress
from updp.io.seeds import mix
from updp.recipe import SubnetSettings
from updp.search.score import HeldOut
from updp.stages.context import Context, StageKey
from updp.supernet import FitRecord, Supernet, fit_plan
from updp.supernet.routed import routed
from updp.tasks import CLASSIFICATION, Task
from updp.training.features import Tap, comparable, feature_loss, tapped
from updp.training.loop import count_steps, train
from updp.training.mixup import blended
from updp.training.precision import MixedPrecision
from updp.training.reconstruct import ReconstructRecord, ReconstructRow, reconstruct

START = "start.safetensors"  # the plan's weights after the fit
RECONSTRUCTED = "reconstructed.safetensors"  # weights while sites are trained alone
_JUDGED = 64  # number of images judged at once


class SubnetKey(StageKey):
    """The settings of the training, the point of the front, the teacher, further images."""

    FILE: ClassVar[str] = "subnet/key.json"
    subnet: dict[str, Any]  # settings of the recipe's `subnet` that decide the outcome
    reconstruct: dict[str, Any] = Field({})  # settings of the recipe's `reconstruct` that decide it
    pick: str = ""  # point of the front that `--pick` asked for; empty for the search's own
    teacher: str = ""  # as the user named it; empty for the baseline or a module from Python
    teacher_weights: str = ""  # sha256 of the teacher's weights; empty for the baseline
    unlabelled: str = ""  # sha256 fingerprint of further images; empty where there are none


def make_key(context: Context) -> SubnetKey:
    """The key of this stage."""
    return SubnetKey(
        subnet=context.recipe.subnet.decisive(),
        reconstruct=context.recipe.reconstruct.decisive(),
        pick=context.pick,
        teacher=context.names.teacher,
        teacher_weights=context.hashes.teacher,
        unlabelled=context.hashes.unlabelled,
    )


def run(context: Context) -> None:
    """Write `weights.safetensors`, and after a fit also `start.safetensors` and `fit.json`."""
    settings = context.recipe.subnet
    net = context.make_supernet() if settings.start == "baseline" else context.net
    if settings.start != "baseline":
        context.load_weights(net, "supernet")
    if settings.start == "fit":
        _fit(context, net)
    if context.recipe.reconstruct.epochs:
        reconstruct_plan(context, net, context.found_plan().choices)
    train_plan(context, net, context.found_plan().choices)
    context.save_weights(net, "subnet")


def _fit(context: Context, net: Supernet) -> None:
    """Load the plan's weights after the fit; fit first unless an interrupted run already has."""
    if not processes.broadcast((context.folder("subnet") / START).exists()):
        progress, settings = context.progress, context.recipe.fit
        rows = fit_plan(
            net,
            context.found_plan().choices,
            context.feed.calibration(settings.images),
            settings,
            progress.advance,
            lambda steps: progress.begin("subnet: fitting", steps),
            context.task,
        )
        FitRecord(rows=tuple(rows)).write(context.root)
        context.save_weights(net, "subnet", START)
        processes.barrier()
    context.load_weights(net, "subnet", START)


def reconstruct_plan(context: Context, net: Supernet, choices: Mapping[str, str]) -> None:
    """Train a plan's sites alone; load those that an interrupted run has trained."""
    settings, recipe = context.recipe.reconstruct, context.recipe
    path = context.folder("subnet") / RECONSTRUCTED
    rows: list[ReconstructRow] = []
    if processes.broadcast(path.exists()):
        notes = read_tensors(path)[1]
        with content_of(path):
            rows = [ReconstructRow.model_validate(row) for row in notes["rows"]]
        context.load_weights(net, "subnet", RECONSTRUCTED)

    def save(rows: Sequence[ReconstructRow]) -> None:
        notes = {"shapes": net.shapes(), "rows": [row.model_dump() for row in rows]}
        write_tensors(path, net.weights(), notes)
        processes.barrier()

    net.choose(choices)
    parts = max(1, recipe.data.batch_size // settings.batch_size)
    feed, baseline = context.feed.with_held_out(scored=False), context.make_supernet()
    held_out = [images for images, _ in context.feed.held_out()]
    rows = reconstruct(
        net,
        baseline,
        feed.training_batches(settings.images, parts),
        split(join(held_out), _JUDGED),
        settings,
        seed=mix(recipe.seed, 31),
        megabytes=recipe.fit.rows_mb,
        progress=context.progress,
        done=rows,
        save=save,
        task=context.task,
    )
    ReconstructRecord(rows=tuple(rows)).write(context.root)


def train_plan(context: Context, net: Supernet, choices: Mapping[str, str]) -> None:
    """Train `net` under a plan with the run's own teacher and images; see `train_progressively`."""
    feed, other, settings = context.feed, context.teacher, context.recipe.subnet
    if settings.all_images:
        feed = feed.with_held_out(scored=not settings.checks)
    if context.unlabelled is not None:
        feed = feed.with_unlabelled(context.unlabelled, settings.unlabelled)
    teacher = context.baseline if other is None else other.to(context.device)
    train_progressively(context, net, choices, teacher, feed)


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
    step = ProgressiveStep(net, choices, teacher, settings, context.task)
    paths = _feature_paths(net, teacher, feed, context.progress) if settings.features else []
    net.set_checkpointing(settings.checkpointing)
    # One graph if its code stays the same; hooks and recomputation need separately compiled paths.
    is_fixed = settings.hold == 1 and not (paths or settings.checkpointing)
    score = _held_out_divergence(context, step) if settings.checks else None
    with step.tap(paths):
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
            compile=[net, teacher] if is_fixed else net.paths(),
            score=score,
            checks=settings.checks,
            averaged=step.collapses_at(count_steps(feed, settings)) or 0,
        )
    net.set_lambda(1.0)


class ProgressiveStep:
    """One micro-batch of `train_progressively`, as a function of type `training.loop.Step`."""

    def __init__(
        self,
        net: Supernet,
        choices: Mapping[str, str],
        teacher: nn.Module,
        settings: SubnetSettings,
        task: Task = CLASSIFICATION,
    ) -> None:
        """Choose the plan in `net`, and prepare its forms."""
        self.net, self.teacher, self.settings = net, to_eval(teacher), settings
        self.task = task
        self._taps: tuple[Tap, ...] = ()
        net.choose(choices)
        forms = [net.switches[name].form(label) for name, label in choices.items()]
        # Fitted forms are already merged.
        self._early = forms if settings.merge == "ramp" and settings.start != "fit" else []
        for form in self._early:
            # The optimiser is made before the forms collapse, but needs both kinds of parameters.
            form.set_shape("reserved")

    @contextmanager
    def tap(self, paths: Sequence[str]) -> Iterator[None]:
        """Context that adds the feature loss at the modules at `paths`, if there are any."""
        with tapped(self.net.model, paths) as mine, tapped(self.teacher, paths) as theirs:
            self._taps = (mine, theirs) if paths else ()
            yield
            self._taps = ()

    @contextmanager
    def untapped(self) -> Iterator[None]:
        """Context for running the network outside of a training step, without the feature loss."""
        for tap in self._taps:
            tap.is_open = False
        yield
        for tap in self._taps:
            tap.is_open = True

    def collapses_at(self, total: int) -> int | None:
        """First step with lambda 1, if blocks merge early and there is such a step; else None."""
        first = bisect_left(range(total), 1.0, key=lambda n: ramp(n, total, self.settings))
        return first if self._early and first < total else None

    def __call__(
        self, images: Samples, targets: Any, step: int, total: int, precision: MixedPrecision
    ) -> dict[str, float | Tensor]:
        """See `training.loop.Step`."""
        lam = ramp(step, total, self.settings)
        self.net.set_lambda(lam, self.settings.gate)
        for form in self._early if step == self.collapses_at(total) else ():
            form.set_shape("collapsed")
        if self.settings.blended:
            images = blended(images)
        with precision.autocast():
            loss, figures = self._loss(images, targets)
        precision.backward(loss)
        return {"loss": loss.detach(), "lambda": lam, **figures}

    def _loss(self, images: Samples, targets: Any) -> tuple[Tensor, dict[str, Tensor]]:
        settings, task, wanted = self.settings, self.task, None
        if settings.distill or self._taps:
            with torch.no_grad():  # before the student, so that its activations take no memory yet
                wanted = task.run(self.teacher, images)
        outputs = task.run(self.net, images)
        loss = torch.zeros((), device=tensors_in(outputs)[0].device)
        if settings.distill < 1 and task.has_loss:  # otherwise images need no labels
            labels = task.loss(outputs, targets, settings.label_smoothing)
            loss = (1 - settings.distill) * labels
        if settings.distill and wanted is not None:
            apart = task.distillation(outputs, wanted, settings.temperature)
            loss = loss + settings.distill * apart
        if not self._taps:
            return loss, {}
        mine, theirs = self._taps
        features = feature_loss(mine.take(), theirs.take())
        return loss + settings.features * features, {"features": features.detach()}


def _held_out_divergence(context: Context, step: ProgressiveStep) -> Callable[[], float]:
    """Score function: the net's mean distance from the baseline on the held-out images."""
    with_blends = context.recipe.search.blended
    held_out = HeldOut(context.baseline, context.feed, "divergence", blended=with_blends)

    @torch.no_grad()
    def score() -> float:
        with step.untapped():
            found = held_out.score(lambda _, images: step.task.run(step.net, images))
            return processes.broadcast(found.score)

    return score


def _feature_paths(net: Supernet, teacher: nn.Module, feed: Feed, progress: Progress) -> list[str]:
    """Paths of the pruned blocks whose outputs can be compared with the teacher's."""
    blocks = net.pruned_blocks()
    images = feed.calibration()[0]
    paths = comparable(net.model, teacher, blocks, images[:2])
    unpaired = routed(net.model, images, {path: net.model.get_submodule(path) for path in paths})
    paths = [path for path in paths if path not in unpaired]
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
