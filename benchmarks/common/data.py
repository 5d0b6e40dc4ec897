"""Images and weights that the benchmarks read."""

from __future__ import annotations

from pathlib import Path

from updp.data import Source

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


def check_data() -> None:
    """Raise SystemExit, in one line, where the shared data is missing."""
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is missing: this benchmark needs its images")


def image_size(source: Source) -> tuple[int, int, int]:
    """Size (C, H, W) of the images of opened data."""
    channels, height, width = source.image_size
    return channels, height, width


def cifar_resnet(name: str) -> tuple[str, Path]:
    """Model specification and weights file of a pretrained CIFAR-10 network, such as `resnet56`."""
    return (
        f"{ROOT / 'examples/cifar_resnet.py'}:{name}",
        DATA / f"weights/cifar10_{name}.safetensors",
    )
