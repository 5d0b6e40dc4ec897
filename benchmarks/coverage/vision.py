"""Networks of torchvision, timm and pytorchcv, as they are.

pytorchcv is no dependency: install it beside.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator

import timm
import torch
from torchvision import models as vision

from benchmarks.coverage.base import Network
from updp.blocks.nested import as_samples
from updp.data import model_input_size
from updp.models import load_model
from updp.tasks import find_task

_LARGEST = 100e6  # parameters, of all of timm's networks


def classifier(name: str) -> Network:
    """A classifier of torchvision or timm, as `prune` loads it."""
    model = load_model(name)
    shape = model_input_size(model) or (3, 224, 224)
    return Network(model, torch.randn(2, *shape), find_task("classification"))


# -- torchvision ------------------------------------------------------------------------------


def torchvision_classifiers() -> list[str]:
    """Every classifier of torchvision, smallest first."""
    names = vision.list_models(module=vision)
    size = {n: vision.get_model_weights(n).DEFAULT.meta["num_params"] for n in names}
    return sorted(names, key=size.__getitem__)


def torchvision_others() -> list[str]:
    """Every network of torchvision for maps, boxes and videos."""
    modules = (vision.segmentation, vision.detection, vision.video, vision.optical_flow)
    return [name for module in modules for name in vision.list_models(module=module)]


def torchvision_other(name: str) -> Network:
    none = {"weights": None, "weights_backbone": None}
    fixed = none if name in vision.list_models(module=vision.segmentation) else {"weights": None}
    if name in vision.list_models(module=vision.detection):
        model = vision.get_model(name, **none, num_classes=5)
        side = 320 if "320" in name else 300 if "300" in name else 128
        sized = model.transform
        if side == 128:
            sized.min_size, sized.max_size = (side,), side
        return Network(model, as_samples([torch.rand(3, side, side)] * 2), find_task("detection"))
    model = vision.get_model(name, **fixed)
    if name in vision.list_models(module=vision.optical_flow):
        pair = {"image1": torch.rand(2, 3, 128, 128), "image2": torch.rand(2, 3, 128, 128)}
        return Network(model, as_samples(pair))
    if name in vision.list_models(module=vision.video):
        frames, side = (16, 224) if name.startswith(("mvit", "s3d")) else (8, 64)
        return Network(model, torch.randn(2, 3, frames, side, side))
    return Network(model, torch.randn(2, 3, 128, 128))


# -- timm -------------------------------------------------------------------------------------


def _timm_sizes() -> Iterator[tuple[str, int, str]]:
    """Model file, number of parameters and name of every network of timm."""
    for name in timm.list_models():
        entry = timm.model_entrypoint(name)
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            try:
                model = timm.create_model(name, pretrained=False)
            except Exception:  # some compute values while they are built: not on the meta device
                continue
        count = sum(p.numel() for p in model.parameters())
        yield entry.__module__.rpartition(".")[2], count, name


def timm_files() -> list[str]:
    """The network with fewest parameters of each of timm's model files, smallest first."""
    files: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for file, count, name in _timm_sizes():
        files[file].append((count, name))
    return [name for _, name in sorted(min(of_file) for of_file in files.values())]


def timm_all() -> list[str]:
    """Every network of timm up to 100 M parameters, smallest first."""
    return [name for count, name in sorted(s[1:] for s in _timm_sizes()) if count <= _LARGEST]


# -- pytorchcv --------------------------------------------------------------------------------


def pytorchcv_files() -> list[str]:
    """The network with fewest parameters of each of pytorchcv's model files, smallest first."""
    from pytorchcv.model_provider import _models

    files: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name, make in _models.items():
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            try:
                model = make(pretrained=False)
            except Exception:  # as above; or a backbone that is downloaded
                continue
        files[make.__module__].append((sum(p.numel() for p in model.parameters()), name))
    return [name for _, name in sorted(min(of_file) for of_file in files.values())]


def pytorchcv(name: str) -> Network:
    from pytorchcv.model_provider import get_model

    model = get_model(name, pretrained=False)
    size = getattr(model, "in_size", None) or (224, 224)
    channels = getattr(model, "in_channels", 3)
    return Network(model, torch.randn(2, channels, *size))
