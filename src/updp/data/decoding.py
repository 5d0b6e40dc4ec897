"""Decoding of image files to upright 8-bit pictures."""

import io
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from updp.errors import UserError, reason

_GREY = {"1", "L", "LA", "La"}
_LARGE = 2**24  # pixels
ADVICE = "replace or remove it, or leave it out with data.skip_corrupt=true"


def decode(data: bytes, where: str) -> Image.Image:
    """Decode any format that Pillow reads to a complete, upright picture of mode `L` or `RGB`.

    The EXIF orientation is applied. Of 16 bits the upper 8 are kept, as torchvision does; floats
    are grey values in [0, 1]. Transparency is ignored; only an animation's first frame is read.

    Args:
        data: the encoded image.
        where: the image's name for errors, such as `image 'train/cat/1.png'`.

    Raises:
        UserError: the bytes are not an image, or its values have no known range.
    """
    if not data:
        raise UserError(f"{where} is empty (0 bytes): {ADVICE}")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        image.load()
    except Exception as error:  # Pillow's decoders raise almost any exception on bad bytes
        # Pillow's own message has the address of our buffer.
        unknown = isinstance(error, UnidentifiedImageError)
        why = "no image format" if unknown else reason(error)
        raise UserError(f"{where} cannot be decoded ({why}): {ADVICE}") from error
    with suppress(Exception):  # broken metadata beside valid pixels: the picture is not rotated
        ImageOps.exif_transpose(image, in_place=True)
    return to_eight_bits(image, where)


def is_large(data: bytes) -> bool:
    """Whether the picture is so large that threads should not decode several at once.

    Pillow refuses more than 179 million pixels, so one such picture bounds the memory.
    """
    try:
        width, height = Image.open(io.BytesIO(data), formats=_formats()).size  # from the header
    except Exception:  # `decode` says what is wrong with it
        return False
    return width * height > _LARGE


def _formats() -> list[str]:
    """Pillow's formats except EPS, for which Pillow runs an external program (Ghostscript)."""
    Image.init()
    return [form for form in Image.ID if form != "EPS"]


def to_eight_bits(image: Image.Image, where: str) -> Image.Image:
    """Convert a picture of any of Pillow's modes to `L` or `RGB`; errors name it as `where`."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image, np.uint16) >> 8).astype(np.uint8))
    if image.mode == "I":  # 16 bits in older Pillow and in PGM files, else 32
        values = np.asarray(image)
        _check_range(values, 0, 65535, "32-bit integers", where)
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        _check_range(values, 0, 1, "floats", where)
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    # Pillow warns if a palette with transparency is converted directly to RGB.
    if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
    mode = "L" if image.mode in _GREY else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _check_range(values: NDArray[np.generic], low: int, high: int, kind: str, where: str) -> None:
    least, most = values.min(), values.max()
    if not (low <= least and most <= high):  # or not a number
        raise UserError(
            f"{where} holds {kind} from {least:g} to {most:g}: updp reads {low} to {high}, "
            "save it with 8 or 16 bits a channel"
        )
