"""From uint8 images to what the model was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import timm.data
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from updp.data.images import Size
from updp.errors import UserError


@dataclass(frozen=True)
class Preprocess:
    """Normalises per channel; `mean` and `std` are for pixels in [0, 1]."""

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
        mean = torch.tensor(self.mean, device=batch.device)[:, None, None]
        std = torch.tensor(self.std, device=batch.device)[:, None, None]
        return (batch.float() / 255 - mean) / std


def model_input_size(model: nn.Module) -> Size | None:
    """The (C, H, W) in the model's own timm configuration, if it has one."""
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
    """What is given, else the model's own configuration, else ImageNet's (grey: 0.5 and 0.5).

    The input size falls back on `source_size`, the size of the images, last.
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


def _config(model: nn.Module) -> dict:
    has_one = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    return timm.data.resolve_model_data_config(model) if has_one else {}
