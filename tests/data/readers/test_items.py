from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from updp.data.readers.items import as_image, as_label, split_item
from updp.errors import UserError

PIXELS = np.arange(0, 240, dtype=np.uint8).reshape(3, 8, 10)  # (C, H, W)
FLOATS = PIXELS.astype(np.float64) / 8 - 10  # exact in every type of float
LAST = np.ascontiguousarray(PIXELS.transpose(1, 2, 0))


@pytest.mark.parametrize(
    "given",
    [
        PIXELS,
        LAST,
        torch.from_numpy(PIXELS),
        torch.from_numpy(LAST),
        torch.from_numpy(PIXELS)[None].to(memory_format=torch.channels_last)[0],
        Image.fromarray(LAST),
        PIXELS.astype(np.uint16) * 256 + 255,
        PIXELS.astype(">u2") * 257,
        torch.from_numpy(PIXELS).to(torch.int32).mul(257).to(torch.uint16),
    ],
)
def test_whole_numbers_become_eight_bit_pixels(given: Any) -> None:
    image = as_image(given, "x")
    assert image.dtype == torch.uint8
    assert np.array_equal(image.numpy(), PIXELS)


@pytest.mark.parametrize(
    "given",
    [
        FLOATS,
        FLOATS.transpose(1, 2, 0).astype(np.float16),
        *(torch.from_numpy(FLOATS).to(t) for t in (torch.float64, torch.float16, torch.bfloat16)),
    ],
)
def test_floats_are_taken_as_they_are(given: Any) -> None:
    image = as_image(given, "x")
    assert image.dtype == torch.float32
    assert np.array_equal(image.numpy(), FLOATS)


def test_where_either_end_may_be_channels_tensors_begin_and_arrays_end_with_them() -> None:
    small = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    assert as_image(torch.from_numpy(small), "x").shape == (3, 5, 3)
    assert np.array_equal(as_image(small, "x").numpy(), small.transpose(2, 0, 1))
    assert as_image(np.zeros((13, 8, 8), np.float32), "x").shape == (13, 8, 8)
    assert as_image(np.zeros((6, 7), np.uint8), "x").shape == (1, 6, 7)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.int64), "x is int64, whose range is not known"),
        (np.zeros((3, 8, 8), bool), "x is bool"),
        (torch.zeros(8, 8), r"x is tensor \(8, 8\)"),
        (torch.zeros(4, 3, 8, 8), r"x is tensor \(4, 3, 8, 8\)"),
        (np.array([["a"]]), "x is array of <U1"),
        ("cat.png", "x is str: updp reads pairs"),
        (torch.zeros(3, 8, 8).to_sparse(), "x is a tensor that is sparse: give a dense one"),
        (torch.zeros(3, 8, 8, device="meta"), "x is a tensor that is on the device meta"),
    ],
)
def test_other_images_are_refused(given: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        as_image(given, "x")


@pytest.mark.parametrize("label", [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array([3])])
def test_labels_are_whole_numbers(label: Any) -> None:
    assert as_label(label, "x") == 3


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (0.37, r"x has the label 0\.37 \(float\): labels are class indices"),
        (torch.tensor(2.0), r"the label 2 \(float\)"),
        (torch.tensor([0.0, 1.0]), r"label of shape \(2,\): .* one-hot"),
        ("cat", r"the label 'cat' \(str\)"),
        (None, "the label None"),
        (-1, "the label -1: class indices start at 0"),
    ],
)
def test_other_labels_are_refused(label: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        as_label(label, "x")


def test_items_are_pairs_or_dictionaries() -> None:
    for item in (
        (1, 2),
        [1, 2],
        {"pixel_values": 1, "labels": 2},
        {"label": 2, "image": 1, "x": 0},
        {"image": 1, "target": 2},
    ):
        assert split_item(item, "x") == (1, 2)
    for item in ((1,), (1, None), {"image": 1}, {"image": 1, "label": None}):
        assert split_item(item, "x") == (1, None)
    image = torch.zeros(3, 4, 4)
    assert split_item(image, "x") == (image, None)
    for item in ((1, 2, 3), {"pixels": 1}, 5):
        with pytest.raises(UserError, match="updp reads pairs"):
            split_item(item, "x")
