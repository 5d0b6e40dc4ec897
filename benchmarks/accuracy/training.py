"""Train a pruned network, whatever pruned it, the same way."""

from __future__ import annotations

import copy
from pathlib import Path

from plans import Subject
from torch import nn

from updp import subnet
from updp.blocks import Findings
from updp.data import preprocess_for
from updp.data.feed import Feed
from updp.io.files import read_tensors
from updp.io.progress import Progress
from updp.recipe import Recipe
from updp.run.pipeline import Run
from updp.stages.merge import merge
from updp.supernet import Supernet


def feed_of(subject: Subject, recipe: Recipe) -> Feed:
    """The subject's images as the recipe splits them."""
    preprocess = preprocess_for(subject.model, subject.data.image_size)
    return Feed(subject.data, preprocess, recipe.data, seed=recipe.seed, device=subject.device)


def train_plan(run: Run) -> nn.Module:
    """Stages 3 and 4 of a run whose plan is there: the merged model, proven exact."""
    run.subnet()
    net, choices = run.net(), run.plan().choices
    net.load_weights(read_tensors(run.directory.stage("subnet") / "weights.safetensors")[0])
    folder = run.directory.stage("merge")
    return merge(net, choices, run.feed.calibration()[0][:16], run.recipe, folder)[0]


def train_whole(
    model: nn.Module, subject: Subject, recipe: Recipe, folder: Path, progress: Progress
) -> nn.Module:
    """Any network, such as one with fewer channels, by stage 3's own training."""
    net = Supernet(model.to(subject.device), Findings((), (), {}), {})  # nothing is switchable
    teacher = copy.deepcopy(subject.model).to(subject.device)
    subnet.train(net, {}, teacher, feed_of(subject, recipe), recipe, folder / "subnet", progress)
    return net.baseline().eval()
