import sys

import pytest
import torch

from updp.data import open_source
from updp.errors import UserError


def test_digits_have_fixed_splits_and_fingerprint() -> None:
    source = open_source("digits", input_size=None)
    assert (len(source.train), len(source.test)) == (1297, 500)
    assert source.image_size == (1, 8, 8)
    assert len(source.classes) == 10
    pixels = torch.stack([image for image, _ in (source.train[i] for i in range(1297))])
    assert (pixels.dtype, int(pixels.min()), int(pixels.max())) == (torch.uint8, 0, 255)
    counts = torch.bincount(torch.tensor(source.test.targets))
    assert counts.min() >= 48  # stratified
    assert source.fingerprint == open_source("digits", input_size=(3, 16, 16)).fingerprint


def test_digits_are_resized_to_the_input_size() -> None:
    source = open_source("digits", input_size=(3, 32, 32))
    assert source.test[0][0].shape == source.image_size == (3, 32, 32)


def test_a_missing_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'updp\[digits\]'"):
        open_source("digits", input_size=None)
