"""Labelled images: pictures resized and cropped to uint8 (C, H, W), in memory if they fit."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from updp.blocks.nested import Samples
from updp.data.decoding import decode, is_large
from updp.data.order import Groups
from updp.data.resizing import InputSize, ResizeCrop, as_resize, in_channels
from updp.errors import UserError

NO_LABEL = -1  # label of an image without a label
MOST_CLASSES = 1_000_000  # a larger label is a mistake in the data, and would be expensive
MEMORY_LIMIT = 2 * 1024**3  # maximum bytes of decoded images kept in memory, per split


class Images(Dataset[tuple[Any, Any]]):
    """Item i is an image (C, H, W) with its label; `targets` has all labels, or only `NO_LABEL`.

    In tasks other than classification an item may be any inputs of a model with their labels;
    `targets` then only says whether there are labels.

    Images are uint8, or floats normalised by the user's own loader. `resize` says how pictures
    became images; None if the loader does it. `groups` are images stored together: training reads
    a few groups at a time; None if any order costs the same.
    """

    # Whether reading an image may draw random numbers; if so, its random state is set before.
    draws: ClassVar[bool] = True

    targets: Sequence[int]
    size: tuple[int, ...]
    resize: ResizeCrop | None = None
    groups: Groups | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def labelled(self) -> bool:
        """Whether images have labels."""
        return self.targets[0] != NO_LABEL

    def collate(self, items: list[tuple[Any, Any]]) -> tuple[Samples, Any]:
        """Make a batch from items."""
        images, labels = default_collate(items)
        return images, labels

    def picture(self, index: int) -> tuple[Image.Image, Any]:
        """The complete picture (by default the image itself), for training transforms; its label.

        Raises UserError if it is not 8-bit grey or colour.
        """
        pixels, label = self[index]
        if pixels.dtype != torch.uint8 or len(pixels) not in (1, 3):
            kind = str(pixels.dtype).removeprefix("torch.")
            raise UserError(
                f"timm's training transforms (data.scale, data.auto_augment, ...) take 8-bit grey "
                f"or colour pictures and the images are {by(pixels.shape)} of {kind}: leave them "
                "out, and augment in your data set"
            )
        array = pixels.numpy()
        return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)), label


class Encoded(Protocol):
    """Storage of encoded images."""

    def read(self, index: int) -> bytes:
        """The encoded image."""
        ...

    def where(self, index: int) -> str:
        """The image's name for an error message."""
        ...


class OnDemand(Images):
    """Pictures decoded at every access; without `input_size` all must be as large as the first."""

    draws: ClassVar[bool] = False

    def __init__(
        self,
        encoded: Encoded,
        targets: Sequence[int],
        input_size: InputSize | None,
        groups: Groups | None = None,
    ) -> None:
        self.encoded, self.targets, self.input_size = encoded, targets, input_size
        self.groups = groups
        channels, height, width = self._pixels(0, encoded.read(0)).shape
        self.size = (channels, height, width)
        self.resize = as_resize(input_size or self.size)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.pixels(index)), self.targets[index]

    def picture(self, index: int) -> tuple[Image.Image, int]:
        """The complete upright picture, grey or colour as the images are, with its label."""
        return in_channels(self._decode(index), self.size[0]), self.targets[index]

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Image `index`, (C, H, W)."""
        return self._sized(index, self.encoded.read(index))

    def small_pixels(self, index: int) -> NDArray[np.uint8] | None:
        """Like `pixels`, but None for a large picture, which must not be decoded in parallel."""
        data = self.encoded.read(index)
        return None if is_large(data) else self._sized(index, data)

    def _sized(self, index: int, data: bytes) -> NDArray[np.uint8]:
        pixels = self._pixels(index, data)
        if pixels.shape != self.size:
            raise UserError(
                f"{self.encoded.where(index)} is {by(pixels.shape)} and others are "
                f"{by(self.size)}: pass an input size to resize to (--input-size)"
            )
        return pixels

    def _pixels(self, index: int, data: bytes) -> NDArray[np.uint8]:
        return resize_and_crop(decode(data, self.encoded.where(index)), self.input_size)

    def _decode(self, index: int) -> Image.Image:
        return decode(self.encoded.read(index), self.encoded.where(index))


class InMemory(Images):
    """Images in memory, `pixels` uint8 (N, C, H, W); `whole` rereads the complete pictures."""

    draws: ClassVar[bool] = False

    def __init__(
        self,
        pixels: Tensor,
        targets: Sequence[int],
        *,
        whole: OnDemand | None = None,
        resize: ResizeCrop | None = None,
    ) -> None:
        assert len(pixels) == len(targets)
        self.pixels, self.targets, self.whole = pixels, targets, whole
        self.size = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        self.resize = whole.resize if whole else resize

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index], self.targets[index]

    def picture(self, index: int) -> tuple[Image.Image, int]:
        """The complete picture if it can be read again, else the image itself, with its label."""
        picture, _ = self.whole.picture(index) if self.whole else super().picture(index)
        return picture, self.targets[index]


def load_images(
    encoded: Encoded,
    targets: Sequence[int],
    input_size: InputSize | None,
    groups: Groups | None = None,
) -> Images:
    """Load all images now, to find bad ones early, unless they exceed the memory limit."""
    images = OnDemand(encoded, targets, input_size, groups)
    if len(images) * prod(images.size) > MEMORY_LIMIT:
        return images
    pixels = np.empty((len(images), *images.size), np.uint8)
    with ThreadPoolExecutor() as pool:
        for index, image in enumerate(pool.map(images.small_pixels, range(len(images)))):
            pixels[index] = images.pixels(index) if image is None else image
    return InMemory(torch.from_numpy(pixels), targets, whole=images)


def resize_and_crop(picture: Image.Image, size: InputSize | None) -> NDArray[np.uint8]:
    """Resized pixels (C, H, W); with `size` None at the picture's own size, (1, H, W) if grey."""
    if size is None:
        channels = 1 if picture.mode == "L" else 3
        size = (channels, picture.height, picture.width)
    return as_resize(size)(picture)


def by(size: Sequence[int]) -> str:
    """The size as text, such as `3x32x32`."""
    return "x".join(map(str, size))
