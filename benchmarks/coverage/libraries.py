"""Other libraries' networks by name: `LIBRARY/NETWORK`, at random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.coverage import hugging_face, vision, vits
from benchmarks.coverage.base import Network


@dataclass(frozen=True)
class Library:
    """Where networks come from: their names in the order to measure them, and one of them."""

    title: str
    package: str
    names: Callable[[], list[str]]
    load: Callable[[str], Network]


LIBRARIES = {
    "torchvision": Library(
        "torchvision: classifiers",
        "torchvision",
        vision.torchvision_classifiers,
        lambda name: vision.classifier(f"torchvision/{name}"),
    ),
    "torchvision-tasks": Library(
        "torchvision: segmentation, detection, video, optical flow",
        "torchvision",
        vision.torchvision_others,
        vision.torchvision_other,
    ),
    "timm": Library(
        "timm: one network of each model file",
        "timm",
        vision.timm_files,
        lambda name: vision.classifier(f"timm/{name}"),
    ),
    "timm-all": Library(
        "timm: all up to 100 M parameters",
        "timm",
        vision.timm_all,
        lambda name: vision.classifier(f"timm/{name}"),
    ),
    "pytorchcv": Library(
        "pytorchcv: one network of each model file",
        "pytorchcv",
        vision.pytorchcv_files,
        vision.pytorchcv,
    ),
    "vit-pytorch": Library("vit-pytorch: each classifier", "vit-pytorch", vits.vit_names, vits.vit),
    "transformers-images": Library(
        "transformers: image classifiers",
        "transformers",
        hugging_face.VISION.split,
        hugging_face.image_classifier,
    ),
    "transformers-text": Library(
        "transformers: encoders of text",
        "transformers",
        hugging_face.ENCODERS.split,
        hugging_face.text_model("AutoModelForSequenceClassification"),
    ),
    "transformers-decoders": Library(
        "transformers: causal language models",
        "transformers",
        hugging_face.DECODERS.split,
        hugging_face.text_model("AutoModelForCausalLM"),
    ),
}


def load_network(name: str) -> Network:
    """The network of a name, seeded."""
    torch.manual_seed(0)
    library, _, network = name.partition("/")
    return LIBRARIES[library].load(network)
