"""Image classifiers of the transformers library, from a folder; nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from updp.errors import UserError, needs_extra, reason


class Classifier(nn.Module):
    """Adapter of a transformers model, from images (N, C, H, W) to logits (N, classes)."""

    def __init__(self, model: nn.Module, pretrained_cfg: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.model = model
        if pretrained_cfg:  # where timm, and so `model_input_size`, looks
            self.pretrained_cfg = pretrained_cfg

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        logits: Tensor = self.model(pixel_values=x).logits
        return logits


def load_classifier(path: Path, num_classes: int | None = None) -> Classifier:
    """Build the model of a folder with `config.json`, or of such a file.

    Weights are read from `model.safetensors` (or its shards) in the folder, if it has them, and
    are random otherwise. The head is new where `num_classes` is not the configuration's.

    Raises:
        UserError: transformers is not installed, or the folder holds no such model.
    """
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError as error:
        raise needs_extra(f"model '{path}'", "transformers", "hf") from error
    folder = path if path.is_dir() else path.parent
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"'{path}' holds no config.json: give the folder of a saved model")
    try:
        config = AutoConfig.from_pretrained(file, local_files_only=True)
        if num_classes is not None and num_classes != config.num_labels:
            config.num_labels = num_classes
        if any(folder.glob("model*.safetensors")) and path.is_dir():
            model = AutoModelForImageClassification.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
            )
        else:
            model = AutoModelForImageClassification.from_config(config)
    except TypeError as error:  # DeiT has two heads, and only `architectures` says which
        raise UserError(f"'{path}': its config.json names no architecture") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"'{path}' is no image classifier: {reason(error)}") from error
    return Classifier(model.eval(), _preprocessing(folder, config))


def _preprocessing(folder: Path, config: Any) -> dict[str, Any]:
    """Input size, mean and std from the configuration files, where they have them."""
    found: dict[str, Any] = {}
    side = getattr(config, "image_size", None)
    channels = getattr(config, "num_channels", 3)
    if side is not None:
        height, width = (side, side) if isinstance(side, int) else tuple(side)
        found["input_size"] = (channels, height, width)
    file = folder / "preprocessor_config.json"
    if file.is_file():
        settings = json.loads(file.read_text())
        for key, name in (("mean", "image_mean"), ("std", "image_std")):
            if name in settings:
                found[key] = tuple(settings[name])
    return found if "input_size" in found else {}
