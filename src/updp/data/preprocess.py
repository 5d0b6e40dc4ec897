"""Resizing, cropping and normalisation of images, in the way the model was trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm.data
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from updp.data.resizing import ResizeCrop, Size
from updp.errors import UserError

NO_SIZE = (
    "the model does not say what images it takes: pass an input size, such as --input-size "
    "3x224x224 (in Python (3, 224, 224))"
)


@dataclass(frozen=True)
class Preprocess:
    """Normalises images per channel; `mean` and `std` are for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: Size

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.input_size[0]:
                raise UserError(
                    f"{name} {values} has {len(values)} values for images of "
                    f"{self.input_size[0]} channels: give one per channel"
                )
        if min(self.std) <= 0:
            raise UserError(f"std {self.std} must be positive")
        if max(self.mean) > 1:
            raise UserError(
                f"mean {self.mean} is that of pixels from 0 to 255, and here they go from 0 to 1: "
                "divide mean and std by 255"
            )

    def __call__(self, batch: Tensor) -> Tensor:
        """Convert uint8 (N, C, H, W) to normalised float32; a float batch is returned unchanged."""
        if batch.is_floating_point():
            return batch
        return self.normalised(batch.float() / 255)

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise floats (N, C, H, W) in [0, 1]."""
        return (x - _per_channel(self.mean, x)) / _per_channel(self.std, x)

    def restored(self, x: Tensor) -> Tensor:
        """Undo `normalised`."""
        return x * _per_channel(self.std, x) + _per_channel(self.mean, x)


def model_input_size(model: nn.Module) -> Size | None:
    """Input size (C, H, W) of the model's own timm configuration, if it has one."""
    config = _config(model)
    return tuple(config["input_size"]) if config else None


def resize_for(
    model: nn.Module,
    *,
    input_size: Size | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    interpolation: str | None = None,
    mean: Sequence[float] | None = None,
) -> ResizeCrop | None:
    """Resizing and cropping of pictures: each argument, else the model's timm configuration.

    Values that are in neither are the defaults of `ResizeCrop`. None if there is no input size.
    `mean` fills the border of `crop_mode="border"`.

    >>> resize_for(timm.create_model("deit_tiny_patch16_224"))
    ResizeCrop(size=(3, 224, 224), crop_pct=0.9, ..., interpolation='bicubic', ...)
    """
    size = input_size or model_input_size(model)
    if size is None:
        return None
    config = _config(model)
    # Without a value timm would crop an eighth, even of CIFAR's 32x32 pixels.
    stated = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    default = ResizeCrop(size)
    return ResizeCrop(
        size,
        crop_pct=crop_pct or stated.get("crop_pct") or default.crop_pct,
        crop_mode=crop_mode or stated.get("crop_mode") or default.crop_mode,
        interpolation=interpolation or stated.get("interpolation") or default.interpolation,
        fill=tuple(mean or config.get("mean", default.fill)),
    )


def preprocess_for(
    model: nn.Module,
    source_size: Size | None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: Size | None = None,
) -> Preprocess:
    """Choose each value: the argument, else the model's timm configuration, else ImageNet's.

    For images without 3 channels 0.5 replaces ImageNet's values. The default of the input size is
    `source_size`, the size of the images.

    Raises:
        UserError: there is no input size, or `mean` or `std` do not match the channels.
    """
    size = input_size or model_input_size(model) or source_size
    if size is None:
        raise UserError(NO_SIZE)
    config = _config(model)
    if not states_colour(model, size[0]):
        half = (0.5,) * size[0]
        colour = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        config = colour if size[0] == 3 else {"mean": half, "std": half}
    return Preprocess(tuple(mean or config["mean"]), tuple(std or config["std"]), size)


def states_colour(model: nn.Module, channels: int) -> bool:
    """Whether the model's configuration has a mean for this number of channels."""
    return len(_config(model).get("mean", ())) == channels


def _config(model: nn.Module) -> dict[str, Any]:
    has_one = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    return dict(timm.data.resolve_model_data_config(model)) if has_one else {}


def _per_channel(values: Sequence[float], x: Tensor) -> Tensor:
    return x.new_tensor(values)[:, None, None]
