"""Checks of a model and its data together: labels that are there, logits that are of use."""

import logging
import math

import torch
from torch import nn

from updp.blocks.modules import UserCodeError, call_user_code
from updp.data import Source
from updp.data.feed import Feed
from updp.errors import UserError
from updp.recipe import Recipe

_log = logging.getLogger(__name__)

_LOOKED_AT = 64  # held-out images, to see whether the model knows the data
_LARGEST = 1e6  # of its logits: probabilities are 0 and 1 alone from a hundred on


def check_labels_suffice(source: Source, recipe: Recipe, data: str) -> None:
    """Say what stands for labels that images lack. Raises UserError where they are trained on."""
    if not source.train.labelled and recipe.learns_labels:
        raise UserError(
            f"data '{data}' has no labels, and {recipe.learns_labels} trains on them: take "
            "--recipe fit-only, which trains nothing, or set supernet.epochs=0 and "
            "subnet.distill=1; or put the images into a folder per class, such as train/CLASS"
        )
    without = {"data": source.train, "test split": source.test}
    names = " and ".join(name for name, images in without.items() if not images.labelled)
    if names:
        _log.warning(
            "the %s of '%s' has no labels: in place of top-1 stands the agreement with the "
            "baseline, the share of images that it puts into the same class",
            names,
            data,
        )


def look_at(baseline: nn.Module, feed: Feed, source: Source) -> None:
    """Run the baseline on held-out images; warn where it is not better than a guess.

    Raises UserError: it fails on them, or its logits are of no use.
    """
    images, labels = next(feed.held_out())
    images, labels = images[:_LOOKED_AT], labels[:_LOOKED_AT]
    try:
        with torch.no_grad():
            logits = call_user_code(baseline, images)
    except UserCodeError as error:
        raise UserError(f"the model fails on {len(images)} held-out images: {error}") from error
    count = f"of {len(images)} held-out images"
    most = float(logits.abs().max())
    if not math.isfinite(most):
        wrong = int((~logits.isfinite()).any(1).sum())
        raise UserError(
            f"the model's logits are NaN or infinite for {wrong} {count}: are the images "
            "normalised as it was trained with, and its weights sound?"
        )
    if most > _LARGEST:
        raise UserError(
            f"the model's logits {count} are as large as {most:.3g}: are the images normalised as "
            "it was trained with, and its weights sound?"
        )
    if (logits == logits[0]).all() and not (images == images[0]).all():
        raise UserError(
            f"the model gives the same logits for each {count}: are its weights loaded?"
        )
    if not feed.labelled:
        return
    right = int((logits.argmax(1) == labels).sum())
    guessed = len(labels) / len(source.classes)
    if right <= guessed + 2 * math.sqrt(guessed):  # two standard deviations of a guess
        _log.warning(
            "the model is right on %d of %d held-out images, as a guess would be: are its weights "
            "loaded, and are its classes in the order of the data's (%s, ...)?",
            right,
            len(labels),
            ", ".join(source.classes[:3]),
        )
