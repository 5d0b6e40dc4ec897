"""Labelled images: bytes are decoded to uint8 (C, H, W), in memory when they fit."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from updp.data.decoding import decode
from updp.errors import UserError

Size = tuple[int, int, int]  # (C, H, W)

MEMORY_LIMIT = 2 * 1024**3  # bytes of decoded images kept, per split


class Images(Dataset[tuple[Tensor, int]]):
    """Item i is an image, uint8 (C, H, W), and its label; `targets` are all labels."""

    targets: Sequence[int]
    size: Size

    def __len__(self) -> int:
        return len(self.targets)


class Encoded(Protocol):
    """Storage of encoded images."""

    def read(self, index: int) -> bytes:
        """The encoded image."""
        ...

    def where(self, index: int) -> str:
        """The image's name for an error message."""
        ...


class InMemory(Images):
    """Decoded images, `pixels` uint8 (N, C, H, W)."""

    def __init__(self, pixels: Tensor, targets: Sequence[int]) -> None:
        assert len(pixels) == len(targets)
        self.pixels, self.targets = pixels, targets
        self.size = (pixels.shape[1], pixels.shape[2], pixels.shape[3])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index], self.targets[index]


class OnDemand(Images):
    """Images decoded at every access; without an `input_size`, all as large as the first."""

    def __init__(self, encoded: Encoded, targets: Sequence[int], input_size: Size | None) -> None:
        self.encoded, self.targets, self.input_size = encoded, targets, input_size
        channels, height, width = self._decode(0).shape
        self.size = (channels, height, width)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.pixels(index)), self.targets[index]

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Image `index`, (C, H, W)."""
        pixels = self._decode(index)
        if pixels.shape != self.size:
            raise UserError(
                f"{self.encoded.where(index)} is {by(pixels.shape)} and others are "
                f"{by(self.size)}: pass an input size to resize to"
            )
        return pixels

    def _decode(self, index: int) -> NDArray[np.uint8]:
        image = decode(self.encoded.read(index), self.encoded.where(index))
        return resize_and_crop(image, self.input_size)


def load_images(encoded: Encoded, targets: Sequence[int], input_size: Size | None) -> Images:
    """Decode all images now, so that a bad one shows early, unless they exceed the memory limit."""
    images = OnDemand(encoded, targets, input_size)
    if len(images) * prod(images.size) > MEMORY_LIMIT:
        return images
    pixels = np.empty((len(images), *images.size), np.uint8)
    with ThreadPoolExecutor() as pool:
        for index, image in enumerate(pool.map(images.pixels, range(len(images)))):
            pixels[index] = image
    return InMemory(torch.from_numpy(pixels), targets)


def resize_and_crop(image: Image.Image, size: Size | None) -> NDArray[np.uint8]:
    """Scale to cover `size` (bilinear, antialiased), then crop the centre; returns (C, H, W).

    None keeps the image's size, and one channel if it is grey.
    """
    channels = size[0] if size else (1 if image.mode == "L" else 3)
    image = image.convert("L" if channels == 1 else "RGB")
    if size:
        image = ImageOps.fit(image, (size[2], size[1]), Image.Resampling.BILINEAR)
    array = np.asarray(image, np.uint8)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def by(size: Sequence[int]) -> str:
    """The size as text, such as `3x32x32`."""
    return "x".join(map(str, size))
