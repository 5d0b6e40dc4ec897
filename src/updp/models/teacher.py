"""Another model as the teacher of stage 3: the same images with that model's preprocessing."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from updp.blocks.copying import copy_module
from updp.blocks.modules import to_eval
from updp.data import Preprocess, model_input_size, preprocess_for
from updp.errors import UserError
from updp.models import check_finite, load_model, num_outputs, own_copy, weights_of
from updp.recipe import Recipe

BASELINE = "baseline"  # a teacher's name: the user's unpruned model
_NAME = "the teacher"  # its name in errors
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Teacher(nn.Module):
    """A classifier of images that were preprocessed for the pruned model.

    The preprocessing `given` is undone; then the images are converted to the size and channels of
    `own` and normalised by it. If `given` is None (a user's loaders normalise in an unknown way),
    values are not changed.
    """

    def __init__(self, model: nn.Module, given: Preprocess | None, own: Preprocess) -> None:
        super().__init__()
        self.model, self.given, self.own = model, given, own

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        logits: Tensor = self.model(self.prepared(x))
        return logits

    def prepared(self, x: Tensor) -> Tensor:
        """Images as inputs for the teacher, (N, *own.input_size)."""
        channels, *size = self.own.input_size
        given, own = self.given, self.own
        same = given is None or (given.mean, given.std) == (own.mean, own.std)
        if given is not None and not same:
            x = given.restored(x)
        if x.shape[1] == 1 and channels == 3:
            x = x.expand(-1, 3, -1, -1)
        elif x.shape[1] == 3 and channels == 1:
            x = (x * x.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
        if list(x.shape[2:]) != size:
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        return x if same else own.normalised(x)


def load_teacher(
    teacher: nn.Module | str | None, weights: str | Path | None, classes: int, seed: int
) -> nn.Module | None:
    """Load the named teacher with its `weights` (safetensors); a module is copied.

    None as argument or result means the baseline. `classes` and `seed` are as in `load_model`.

    Raises:
        UserError: there is no such model, it would be untrained, or the weights do not fit.
    """
    if not isinstance(teacher, str) or teacher == BASELINE:
        if weights is not None:
            raise UserError("teacher weights are for a teacher given by name, and not for baseline")
        return None if teacher is None or isinstance(teacher, str) else own_copy(teacher, _NAME)
    if weights is not None:
        return load_model(teacher, weights=Path(weights), num_classes=classes or None, seed=seed)
    model = load_model(teacher, seed=seed)
    if teacher.partition("/")[0] in ("timm", "torchvision"):
        raise UserError(
            f"teacher '{teacher}' would be untrained: give its weights, a safetensors file"
        )
    return model


def make_teacher(
    model: nn.Module | None,
    name: str,
    recipe: Recipe,
    given: Preprocess | None,
    classes: int,
    *,
    normalised: bool,
) -> nn.Module | None:
    """Make a frozen copy of `model` as a teacher; None, the baseline, stays None.

    Its preprocessing is given by `subnet.teacher_size`, `teacher_mean` and `teacher_std`; else by
    its own configuration (timm's, transformers'); else it is ImageNet's normalisation for
    torchvision's models, and the pruned model's own for all others.

    Args:
        name: its name in messages.
        given: preprocessing of the pruned model; None if the teacher takes the same inputs, in
            tasks other than the classification of images.
        normalised: whether the user's loaders normalise; only `data.mean` and `data.std` say how.

    Raises:
        UserError: its weights are not finite, its number of classes differs, it fails on images of
            this size, or the recipe does not use a teacher or compares features.
    """
    if model is not None:
        check_finite(weights_of(model), f"teacher '{name}'")
    settings = recipe.subnet
    changed = [f for f in ("size", "mean", "std") if getattr(settings, f"teacher_{f}") is not None]
    if model is None:
        if changed:
            raise UserError(
                f"subnet.teacher_{changed[0]} is about another teacher than the model: give one"
            )
        return None
    if settings.features:
        raise UserError(
            "subnet.features compares the pruned blocks with the model's own, which another "
            "teacher does not have: set subnet.features=0, or leave the teacher out"
        )
    if not settings.distill:
        raise UserError("subnet.distill=0 asks no teacher: raise it, or leave the teacher out")
    copied = to_eval(copy_module(model)).requires_grad_(False)
    if given is None:
        return copied
    size = settings.teacher_size or model_input_size(model) or given.input_size
    wants, has = size[0], given.input_size[0]
    if wants != has and {wants, has} != {1, 3}:
        raise UserError(
            f"teacher '{name}' wants images of {wants} channels and they have {has}: only grey and "
            "colour become one another"
        )
    own = _preparation(model, size, recipe, given)
    try:
        outputs = num_outputs(copied, own.input_size)
    except UserError as error:
        raise UserError(f"teacher '{name}': {error}; see subnet.teacher_size") from error
    if outputs != classes:
        raise UserError(
            f"teacher '{name}' has {outputs} classes and the data {classes}: give one made for "
            "these classes"
        )
    known = not normalised or (recipe.data.mean is not None and recipe.data.std is not None)
    return Teacher(copied, given if known else None, own)


def _preparation(
    model: nn.Module, size: tuple[int, int, int], recipe: Recipe, given: Preprocess
) -> Preprocess:
    settings = recipe.subnet
    says = model_input_size(model) is not None or type(model).__module__.startswith("torchvision.")
    if says or size[0] != given.input_size[0]:
        own = preprocess_for(model, None, input_size=size)
    else:
        own = given
    try:
        return Preprocess(settings.teacher_mean or own.mean, settings.teacher_std or own.std, size)
    except UserError as error:
        raise UserError(f"subnet.teacher_mean and teacher_std: {error}") from error
