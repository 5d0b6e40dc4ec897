import io

import numpy as np
import pytest
import torch
from PIL import Image

from updp.data import images
from updp.data.decoding import decode
from updp.data.images import InMemory, OnDemand, load_images, resize_and_crop
from updp.errors import UserError


def png(width: int, height: int, mode: str = "RGB", colour: int = 200) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), colour).convert(mode).save(file, "png")
    return file.getvalue()


class Listed:
    def __init__(self, *items: bytes) -> None:
        self.items = items

    def read(self, index: int) -> bytes:
        return self.items[index]

    def where(self, index: int) -> str:
        return f"image 'number {index}'"


def test_crop_takes_the_centre() -> None:
    stripes = np.zeros((4, 12, 3), np.uint8)
    stripes[:, 4:8] = 255  # black, white, black thirds
    wide = Image.fromarray(stripes)
    assert (resize_and_crop(wide, (3, 4, 4)) == 255).all()
    assert (
        resize_and_crop(wide, (3, 8, 8))[:, :, 1:7] > 128
    ).all()  # enlarged, then the middle third


def test_an_image_of_the_right_size_is_untouched() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(
        resize_and_crop(Image.fromarray(pixels), (3, 4, 4)), pixels.transpose(2, 0, 1)
    )


@pytest.mark.parametrize(
    ("mode", "own"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)]
)
def test_images_become_grey_or_colour_as_asked(mode: str, own: int) -> None:
    image = decode(png(5, 4, mode), "x")
    assert resize_and_crop(image, None).shape == (own, 4, 5)
    assert resize_and_crop(image, (1, 4, 5)).shape == (1, 4, 5)
    assert resize_and_crop(image, (3, 4, 5)).shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", r"'number 1' is empty \(0 bytes\)"),
        (b"not an image", r"'number 1' cannot be decoded \(no image format\)"),
        (png(64, 64)[:-40], r"'number 1' cannot be decoded \(OSError"),
    ],
)
def test_bad_bytes_name_the_image(data: bytes, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_images(Listed(png(4, 4), data), [0, 1], (3, 4, 4))


def test_sizes_must_agree_unless_one_is_given() -> None:
    mixed = Listed(png(4, 4), png(5, 4))
    with pytest.raises(UserError, match="'number 1' is 3x4x5 and others are 3x4x4: pass an input"):
        load_images(mixed, [0, 1], None)
    assert load_images(mixed, [0, 1], (1, 2, 2)).size == (1, 2, 2)


def test_beyond_the_memory_limit_images_are_decoded_at_access(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded = Listed(png(4, 4, colour=10), png(4, 4, colour=20))
    kept = load_images(encoded, [1, 0], None)
    monkeypatch.setattr(images, "MEMORY_LIMIT", 2 * 3 * 4 * 4 - 1)
    lazy = load_images(encoded, [1, 0], None)
    assert isinstance(kept, InMemory)
    assert isinstance(lazy, OnDemand)
    for index in range(2):
        assert torch.equal(kept[index][0], lazy[index][0])
        assert kept[index][1] == lazy[index][1] == 1 - index
    assert lazy[1][0].dtype == torch.uint8
