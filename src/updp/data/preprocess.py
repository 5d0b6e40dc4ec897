"""Normalisation of images, as the model was trained with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm.data
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from updp.data.images import Size
from updp.errors import UserError


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

    def __call__(self, batch: Tensor) -> Tensor:
        """Uint8 (N, C, H, W) to float32; a float batch, normalised by its loader, is left alone."""
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


def preprocess_for(
    model: nn.Module,
    source_size: Size | None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: Size | None = None,
) -> Preprocess:
    """Choose each value: the argument, else the model's timm configuration, else ImageNet's.

    Grey images have 0.5 and 0.5 in place of ImageNet's. The input size falls back on
    `source_size`, that of the images.

    Raises:
        UserError: there is no input size, or `mean` or `std` do not suit the channels.
    """
    size = input_size or model_input_size(model) or source_size
    if size is None:
        raise UserError("the model does not say what images it takes: pass an input size")
    config = _config(model)
    if len(config.get("mean", ())) != size[0]:  # none, or an RGB configuration for grey images
        grey = {"mean": (0.5,), "std": (0.5,)}
        config = (
            grey if size[0] == 1 else {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        )
    return Preprocess(tuple(mean or config["mean"]), tuple(std or config["std"]), size)


def _config(model: nn.Module) -> dict[str, Any]:
    has_one = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    return dict(timm.data.resolve_model_data_config(model)) if has_one else {}


def _per_channel(values: Sequence[float], x: Tensor) -> Tensor:
    return x.new_tensor(values)[:, None, None]
