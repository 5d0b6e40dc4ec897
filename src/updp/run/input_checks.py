"""Checks of a model together with its data: labels must suffice, outputs must be usable."""

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from updp.blocks.modules import UserCodeError, call_user_code
from updp.blocks.nested import ModelInputs, Samples, count, same, take, tensors_in
from updp.data import Source, states_colour
from updp.data.feed import Feed
from updp.data.readers.samples import LoaderSamples
from updp.errors import UserError
from updp.models import is_code
from updp.recipe import Recipe
from updp.tasks import CLASSIFICATION, CausalLM, Classification, Segmentation, Task

_log = logging.getLogger(__name__)

_LOOKED_AT = 64  # number of held-out images used to see whether the model knows the data
_SHIFTED = 0.95  # if this share of tokens has the next token as label, labels are already shifted
_LARGEST = 1e6  # largest accepted logit; from about 100 on, probabilities are only 0 and 1


def check_settings(task: Task, recipe: Recipe) -> None:
    """Raise UserError for settings of classification if the task is another one."""
    if isinstance(task, Classification):
        return
    given: dict[str, object] = {**_mixing(recipe)}
    if recipe.search.score != "divergence":
        given["search.score"] = recipe.search.score
    if not task.has_loss and (recipe.supernet.epochs or not recipe.subnet.distill):
        raise UserError(
            f"task '{task.name}' has no loss with labels: set supernet.epochs=0, and "
            "subnet.distill above 0, for it is trained to follow the baseline"
        )
    wrong = next((f"{name}={value}" for name, value in given.items() if value), "")
    if wrong:
        raise UserError(
            f"{wrong} is for task={CLASSIFICATION.name}, and the task is '{task.name}': leave it "
            "out"
        )


def check_mixing(source: Source, recipe: Recipe) -> None:
    """Raise UserError if mixup or CutMix is set and samples are not images."""
    for name, value in _mixing(recipe).items():
        if value and not source.has_images:
            raise UserError(
                f"{name}={value:g} is for images, and a sample is {source.form}: leave it out"
            )


def _mixing(recipe: Recipe) -> dict[str, float]:
    """Mixup and CutMix settings of both training stages, by full name."""
    stages = {"supernet": recipe.supernet, "subnet": recipe.subnet}
    names = ("mixup", "cutmix")
    return {f"{s}.{name}": getattr(part, name) for s, part in stages.items() for name in names}


def check_trainable(model: nn.Module, recipe: Recipe) -> None:
    """Raise UserError if the recipe trains, and all parameters of the model are frozen."""
    if (setting := recipe.trains) and not any(
        parameter.requires_grad for parameter in model.parameters()
    ):
        raise UserError(
            f"{setting} trains, and all parameters of the model are frozen (requires_grad=False); "
            "what replaces frozen ones is frozen, too: call requires_grad_() on those that may be "
            "trained, or take --recipe fit-only, which trains nothing"
        )


def check_labels_suffice(
    source: Source, recipe: Recipe, data: str, task: Task = CLASSIFICATION
) -> None:
    """Warn about what replaces missing labels. Raises UserError if training needs them."""
    if not source.train.labelled and recipe.learns_labels and task.has_loss:
        advice = "; or put the images into a folder per class, such as train/CLASS"
        if not isinstance(task, Classification):
            advice = f", or give a loader of inputs with labels for the task '{task.name}'"
        raise UserError(
            f"{data} has no labels, and {recipe.learns_labels} trains on them: take "
            "--recipe fit-only, which trains nothing, or set supernet.epochs=0 and "
            f"subnet.distill=1{advice}"
        )
    without = {"data": source.train, "test split": source.test}
    names = " and ".join(name for name, images in without.items() if not images.labelled)
    if names and isinstance(task, Classification):
        _log.warning(
            "no labels in the %s of %s: in place of top-1 stands the agreement with the "
            "baseline, the share of images that it puts into the same class",
            names,
            data,
        )
    elif names:
        _log.warning(
            "no labels in the %s of %s for the task '%s': in their place stands what the "
            "baseline says (%s)",
            names,
            data,
            task.name,
            task.agreement.name,
        )


def warn_of_idle_budget(plan: object, budget: object) -> None:
    """Warn if both a plan and a budget are given: the budget is then ignored."""
    if plan is not None and budget is not None:
        _log.warning("the budget %s is ignored, for a plan is given", budget)


def check_baseline_outputs(baseline: nn.Module, feed: Feed, source: Source) -> None:
    """Run the baseline on held-out images; warn if a classifier is no better than guessing.

    Raises UserError if it fails on them, or if the task cannot use its outputs.
    """
    inputs, labels = next(feed.held_out())
    inputs, labels = inputs[:_LOOKED_AT], take(labels, slice(_LOOKED_AT))
    if isinstance(feed.task, CausalLM) and feed.labelled:
        _check_next_tokens(inputs, labels)
    try:
        with torch.no_grad():
            outputs = call_user_code(feed.task.run, baseline, inputs)
    except UserCodeError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        hint = ""
        if "missing" in str(error) and "positional argument" in str(error):
            hint = (
                "; of a pair the second is its label: give ((a, b), label), or a dictionary that "
                "names the model's arguments"
            )
        raise UserError(
            f"the model fails on {len(inputs)} held-out samples: {error}{hint}"
        ) from error
    if not feed.task.is_ragged:
        what = "logits" if isinstance(feed.task, Classification) else "output"
        _check_outputs(outputs, inputs, what)
    if isinstance(feed.task, Classification):
        if feed.labelled:
            _check_knowledge(outputs, labels, source)
    else:
        _check_labels(feed.task, outputs, source)
        _check_task(feed.task, outputs, labels if feed.labelled else None)
        if isinstance(feed.task, Segmentation) and feed.labelled and outputs.shape[1] == 1:
            _warn_of_white_masks(labels)


def guessed_colour(baseline: nn.Module, name: str, feed: Feed, recipe: Recipe) -> str:
    """Note for the user if mean and std of a model of his own are only guessed, else ''."""
    preprocess, settings = feed.preprocess, recipe.data
    is_said = settings.mean is not None and settings.std is not None
    if preprocess is None or feed.normalised or is_said or (name and not is_code(name)):
        return ""
    if states_colour(baseline, preprocess.input_size[0]):
        return ""
    mean, std = (",".join(f"{v:g}" for v in of) for of in (preprocess.mean, preprocess.std))
    return (
        f"images: mean {mean} and std {std}, for the model does not say with which it was trained; "
        "--mean and --std do"
    )


def _check_outputs(outputs: Any, inputs: Samples, what: str) -> None:
    """Raise UserError for outputs that are not finite, huge, or equal for all images."""
    tensors, size = tensors_in(outputs), len(inputs)
    found = [x for x in tensors if x.is_floating_point() and x.ndim]
    of = f"of {size} held-out images"
    advice = "are the images normalised as it was trained with, and its weights sound?"
    for x in found:
        if not x.isfinite().all():
            wrong = int((~x.isfinite()).reshape(len(x), -1).any(1).sum())
            raise UserError(f"the model's {what} are NaN or infinite for {wrong} {of}: {advice}")
        if what == "logits" and (most := float(x.abs().max())) > _LARGEST:
            raise UserError(f"the model's logits {of} are as large as {most:.3g}: {advice}")
    if what == "logits" and all(_are_shares(x) for x in found):
        _log.warning(
            "the model's outputs are probabilities, and updp takes them for logits: the plans are "
            "then hardly told apart; leave the softmax out of its forward"
        )
    varied = not same(inputs, take(inputs, torch.zeros(size, dtype=torch.int64)))
    if found and varied and all((x == x[:1]).all() for x in found):
        raise UserError(f"the model gives the same {what} for each {of}: are its weights loaded?")


def _are_shares(outputs: Tensor) -> bool:
    """Whether outputs (N, classes) are probabilities, not logits."""
    return bool((outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < 1e-3).all())


def _check_knowledge(logits: Tensor, labels: Tensor, source: Source) -> None:
    right = int((logits.argmax(1) == labels).sum())
    guessed = len(labels) / len(source.classes)
    if right <= guessed + 2 * math.sqrt(guessed):  # two standard deviations of a guess
        _log.warning(
            "the model is right on %d of %d held-out images, as a guess would be: are its weights "
            "loaded, and are its classes in the order of the data's (%s)?",
            right,
            len(labels),
            ", ".join(source.classes[:3]) + ", ..." * (len(source.classes) > 3),
        )


def _warn_of_white_masks(masks: Tensor) -> None:
    """Warn if masks with one class mark its pixels with 255, white in pictures, and not with 1."""
    values = set(masks.flatten().tolist())
    if 255 in values and values <= {0, 255}:
        _log.warning(
            "masks of %d held-out images hold 0 and 255 alone, and 255 is ignored: the class of a "
            "single logit is 1",
            len(masks),
        )


def _check_next_tokens(inputs: Samples, labels: Any) -> None:
    """Raise UserError if a language model's labels are already shifted, or are a mask."""
    named = inputs.kwargs.get("input_ids") if isinstance(inputs, ModelInputs) else None
    ids = tensors_in(inputs)[0] if named is None else named
    if not isinstance(labels, Tensor) or ids.shape != labels.shape or ids.ndim != 2:
        return
    counted = labels[:, :-1] >= 0
    as_next, as_own = (
        float((labels[:, :-1] == part)[counted].double().mean())
        for part in (ids[:, 1:], ids[:, :-1])
    )
    if as_next > max(_SHIFTED, as_own):
        raise UserError(
            f"labels of the task '{CausalLM.name}' are the next tokens of {as_next:.0%} of the "
            "tokens: give the ids themselves as labels, or none, for the task shifts them by one"
        )
    if labels.min() >= 0 and labels.max() <= 1 < ids.max():
        raise UserError(
            f"labels of the task '{CausalLM.name}' are zeros and ones alone, as a mask is: give a "
            "mask as an input, ((ids, mask),) or {'input_ids': ..., 'attention_mask': ...}"
        )


def _check_labels(task: Task, outputs: Any, source: Source) -> None:
    """Check labels against the model's outputs. Raises UserError if they do not fit."""
    try:
        fault_of = call_user_code(task.label_check, outputs)
    except UserCodeError:  # outputs of another form; the task's functions report it
        return
    for images in (source.train, source.test):
        if fault_of is not None and images.labelled and isinstance(images, LoaderSamples):
            images.check_labels(fault_of)


def _check_task(task: Task, outputs: Any, labels: Any) -> None:
    """Try the functions of a task. Raises UserError if one fails or returns a wrong result."""
    samples = count(outputs)

    def tried(name: str, *args: Any) -> Any:
        try:
            with torch.no_grad():
                return call_user_code(getattr(task, name), *args)
        except UserCodeError as error:
            if isinstance(error.__cause__, UserError):  # for example a missing package
                raise error.__cause__ from None
            given = ", ".join(str(tuple(x.shape)) for x in tensors_in(args))
            raise UserError(
                f"task '{task.name}': {name} fails on tensors of {given}: {error}"
            ) from error

    apart = tried("distance", outputs, outputs)
    if not isinstance(apart, Tensor) or apart.shape != (samples,) or not apart.abs().max() < 1e-3:
        raise UserError(
            f"task '{task.name}': distance of outputs from themselves must be 0 for each of "
            f"{samples} samples, and is {apart}"
        )
    wanted = tried("predictions", outputs) if labels is None else labels
    value = tried("value", [tried("figures", outputs, wanted)])
    if not isinstance(value, float | int):
        raise UserError(f"task '{task.name}': value is {value!r}: it must be a number")
    if labels is not None and task.has_loss:
        tried("loss", outputs, labels)
