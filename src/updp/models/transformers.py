"""Image classifiers of the transformers library, from a folder; nothing is downloaded."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from updp.errors import UserError, needs_extra, reason

_log = logging.getLogger(__name__)

_CROPPED_BELOW = 384  # in pixels, from transformers' ConvNextImageProcessor


class Classifier(nn.Module):
    """Adapter for a transformers model, from images (N, C, H, W) to logits (N, classes)."""

    def __init__(self, model: nn.Module, pretrained_cfg: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.model = model
        if pretrained_cfg:  # timm, and so `model_input_size`, looks here
            self.pretrained_cfg = pretrained_cfg

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        logits: Tensor = self.model(pixel_values=x).logits
        return logits


def load_classifier(path: Path, num_classes: int | None = None) -> Classifier:
    """Build the model from a folder with `config.json`, or from such a file.

    Weights are read from `model.safetensors` (or its shards) in the folder, and are random if there
    is no such file. The head is new if `num_classes` differs from the configuration's.

    Raises:
        UserError: transformers is not installed, the folder has no such model, its weights are a
            pickle, or they do not fit.
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
        new_head = num_classes is not None and num_classes != config.num_labels
        if new_head:
            config.num_labels = num_classes
        if any(folder.glob("model*.safetensors")) and path.is_dir():
            model, loaded = AutoModelForImageClassification.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            _check_loaded(path, model, loaded, num_classes if new_head else None)
        elif pickles := [*folder.glob("pytorch_model*.bin")]:
            raise UserError(
                f"'{pickles[0]}' is a pickle, which updp never opens: save the model again with "
                "save_pretrained, which writes model.safetensors"
            )
        else:
            model = AutoModelForImageClassification.from_config(config)
    except UserError:
        raise
    except TypeError as error:  # DeiT has two heads, and only `architectures` tells which
        raise UserError(f"'{path}': its config.json names no architecture") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"'{path}' is no image classifier: {reason(error)}") from error
    return Classifier(model.eval(), _preprocessing(folder, config))


def _check_loaded(path: Path, model: nn.Module, loaded: Any, new: int | None) -> None:
    """Raise UserError if weights are missing or misshapen, except in a head of `new` classes."""
    keys = [*loaded["missing_keys"], *loaded["mismatched_keys"]]
    names = sorted({key if isinstance(key, str) else key[0] for key in keys})
    tensors = model.state_dict()
    wrong = [name for name in names if new is None or tensors[name].shape[:1] != (new,)]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"'{path}' has no weights of the right shape for {wrong[0]}{more}, which would be "
            "random: give a model that was trained to classify these classes"
        )


def _preprocessing(folder: Path, config: Any) -> dict[str, Any]:
    """Input size, crop and normalisation from the configuration files, in timm's terms."""
    found: dict[str, Any] = {}
    side = getattr(config, "image_size", None)
    channels = getattr(config, "num_channels", 3)
    if side is not None:
        height, width = (side, side) if isinstance(side, int) else tuple(side)
        found["input_size"] = (channels, height, width)
    file = folder / "preprocessor_config.json"
    if file.is_file():
        try:
            stated = json.loads(file.read_text())
            for key, name in (("mean", "image_mean"), ("std", "image_std")):
                if name in stated:
                    found[key] = tuple(stated[name])
            if "resample" in stated:
                found["interpolation"] = Image.Resampling(stated["resample"]).name.lower()
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"'{file}' is not understood: {reason(error)}") from error
        if {"size", "crop_size", "crop_pct"} & stated.keys():
            try:
                cropped = _crop(folder, config)
            except Exception as error:  # the library's own code, for any kind of processor
                _log.warning("the crop of '%s' is not used: %s", file, reason(error))
                cropped = {}
            size = (channels, *cropped.pop("size", found.get("input_size", ())[1:]))
            if len(size) == 3 and found.setdefault("input_size", size) == size:
                found |= cropped
    return found if "input_size" in found else {}


def _crop(folder: Path, config: Any) -> dict[str, Any]:
    """Size (H, W), `crop_pct` and `crop_mode` that match the folder's image processor.

    The library reads the file, because its form has changed: a `size` of one number is a square for
    some processors, and the shorter edge for others.
    """
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, config=config, local_files_only=True)

    def sides(name: str, *keys: str) -> tuple[int, ...] | None:
        size = getattr(processor, name, None)
        found = [size.get(k) if isinstance(size, dict) else getattr(size, k, None) for k in keys]
        return None if None in found else tuple(int(side or 0) for side in found)

    edge, whole = sides("size", "shortest_edge"), sides("size", "height", "width")
    share = getattr(processor, "crop_pct", None)
    if share is not None and edge is not None:  # ConvNeXt's: only small images are cropped
        small = edge[0] < _CROPPED_BELOW
        mode = "center" if small else "squash"
        return {"size": edge * 2, "crop_pct": share if small else 1.0, "crop_mode": mode}
    crop = (
        sides("crop_size", "height", "width")
        if getattr(processor, "do_center_crop", False)
        else None
    )
    size = crop or whole or (edge or ()) * 2
    if not size:
        raise ValueError(f"size {processor.size} has neither height and width nor a shortest edge")
    scaled = (whole or edge or size)[0]
    share = size[0] / scaled
    if int(size[0] / share) < scaled:  # timm rounds this down
        share = math.nextafter(share, 0)
    return {"size": size, "crop_pct": share, "crop_mode": "squash" if whole else "center"}
