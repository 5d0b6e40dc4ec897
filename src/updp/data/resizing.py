"""Resize and crop pictures to the network's input size, as timm does for evaluation."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform

Size = tuple[int, int, int]  # (C, H, W)


@dataclass(frozen=True)
class ResizeCrop:
    """timm's evaluation transform up to 8-bit pixels; the fields have timm's names.

    With the defaults the picture is scaled to cover `size` and the centre is cut out; a picture
    with this aspect ratio loses nothing.

    Args:
        size: channels, height and width (C, H, W) of the result; grey if C is 1.
        crop_pct: share of the scaled side that the crop keeps.
        crop_mode: `center`; `squash`, which distorts the picture; or `border`, which pads it.
        interpolation: `bilinear`, `bicubic`, `lanczos`, ...; antialiased.
        fill: colour of `border`, in [0, 1]; one number, or one for each channel.

    >>> resize = ResizeCrop((3, 224, 224), crop_pct=0.875, interpolation="bicubic")
    >>> resize(Image.new("RGB", (500, 375))).shape
    (3, 224, 224)
    """

    size: Size
    crop_pct: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bilinear"
    fill: tuple[float, ...] = (0.0,)

    def __call__(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Pixels (C, H, W) of a picture of any size."""
        pixels: NDArray[np.uint8] = self._transform(in_channels(picture, self.size[0])).numpy()
        return pixels

    @cached_property
    def _transform(self) -> Any:
        channels, height, width = self.size
        return create_transform(
            (height, width),
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            interpolation=self.interpolation,
            mean=self.fill if len(self.fill) == channels else self.fill[:1] * channels,
            normalize=False,
        )


InputSize = Size | ResizeCrop  # a plain size is cropped with the defaults


def as_resize(size: InputSize) -> ResizeCrop:
    """Convert a plain size to a `ResizeCrop` with the defaults."""
    return size if isinstance(size, ResizeCrop) else ResizeCrop(size)


def in_channels(picture: Image.Image, channels: int) -> Image.Image:
    """Convert to grey if `channels` is 1, else to colour."""
    mode = "L" if channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)
