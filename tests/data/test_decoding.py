import io

import numpy as np
import pytest
from PIL import Image

from updp.data.decoding import decode
from updp.errors import UserError


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data, "image 'x'"))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_upper_eight(form: str) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(pixels(encoded(Image.fromarray(ramp), form)), ramp // 256)


def test_floats_are_grey_values_up_to_one() -> None:
    grey = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    given = pixels(encoded(Image.fromarray(grey), "TIFF"))
    assert given.flatten().tolist() == list(range(256))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.float32(255), "holds floats from 255 to 255: updp reads 0 to 1, save it with"),
        (np.float32("nan"), "holds floats from nan"),
        (np.int32(70000), "holds 32-bit integers from 70000 to 70000: updp reads 0 to 65535"),
    ],
)
def test_values_without_a_known_range_are_refused(value: np.generic, says: str) -> None:
    data = encoded(Image.fromarray(np.full((2, 2), value)), "TIFF")
    with pytest.raises(UserError, match=f"image 'x' {says}"):
        decode(data, "image 'x'")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int) -> None:
    upright = np.zeros((8, 16), np.uint8)
    upright[:4, :8] = 255  # the upper left quarter
    stored = {  # what a camera stores that was held so; EXIF 2.3, tag 0x0112
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(pixels(data), upright)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK"])
@pytest.mark.parametrize("form", ["TIFF", "PNG"])
def test_other_modes_keep_their_colour(mode: str, form: str) -> None:
    if (mode, form) == ("CMYK", "PNG"):
        pytest.skip("PNG has no CMYK")
    red = Image.new("RGB", (4, 4), (255, 0, 0)).convert(mode)
    assert (pixels(encoded(red, form)) == (255, 0, 0)).all()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "AVIF", "JPEG", "BMP"])
def test_usual_formats_are_read(form: str) -> None:
    if f".{form.lower()}" not in Image.registered_extensions():
        pytest.skip(f"this Pillow has no {form}")
    given = pixels(encoded(Image.new("RGB", (8, 8), (200, 100, 50)), form))
    assert np.abs(given.astype(int) - (200, 100, 50)).max() <= 4
