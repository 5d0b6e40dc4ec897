"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, without a download."""

import hashlib

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from updp.data.images import InMemory, resize_and_crop
from updp.data.resizing import InputSize, as_resize
from updp.data.source import Source
from updp.data.split import hold_out
from updp.errors import needs_extra

_TEST_IMAGES = 500


def open_digits(input_size: InputSize | None) -> Source:
    """Open the digits: always the same 1,297 training and 500 test images."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise needs_extra("data 'digits'", "scikit-learn", "digits") from error
    values, labels = load_digits(return_X_y=True)
    grey = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    pixels = torch.from_numpy(
        np.stack([resize_and_crop(Image.fromarray(image), input_size) for image in grey])
    )
    targets = labels.tolist()
    train, test = hold_out(len(targets), targets, _TEST_IMAGES, seed=0)

    def part(indices: Tensor) -> InMemory:
        labels = [targets[i] for i in indices.tolist()]
        return InMemory(pixels[indices], labels, resize=as_resize(input_size or (1, 8, 8)))

    images = part(train)
    return Source(
        train=images,
        test=part(test),
        classes=tuple(str(digit) for digit in range(10)),
        fingerprint=hashlib.sha256(grey.tobytes() + bytes(targets)).hexdigest(),
        image_size=images.size,
    )
