"""Train a pruned network the same way, whatever pruned it."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from benchmarks.accuracy.plans import Subject
from updp.blocks import Findings
from updp.io.progress import Progress
from updp.recipe import Recipe
from updp.run.pipeline import Run
from updp.stages import merge
from updp.stages.context import Context
from updp.stages.subnet import train_progressively
from updp.supernet import Supernet


def train_plan(run: Run) -> nn.Module:
    """Stages 3 and 4 of a run whose plan was found: the merged model, proven exact.

    Unlike `run.until("merge")` this tests and times nothing: most trainings only try a rate.
    """
    run.until("subnet")
    return merge.run(run.context)[0]


def train_whole(
    model: nn.Module, subject: Subject, recipe: Recipe, folder: Path, progress: Progress
) -> nn.Module:
    """Train any network, such as one with fewer channels, by stage 3's own training."""
    net = Supernet(model.to(subject.device), Findings((), (), {}), {})  # nothing is switchable
    context = Context(**vars(subject.inputs(recipe, progress)), root=folder)
    teacher = copy.deepcopy(context.baseline)
    train_progressively(context, net, {}, teacher, context.feed)
    return net.baseline().eval()
