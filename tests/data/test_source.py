from pathlib import Path

import pytest
import torch

from updp.data import Source, open_source
from updp.data.images import InMemory
from updp.errors import UserError


def test_unknown_data_names_the_forms() -> None:
    with pytest.raises(UserError, match=r"'no/such' is not there: give digits, .*CLASS.*parquet"):
        open_source("no/such", input_size=None)


def test_digits_keep_their_test_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot take the place of the digits' own 500 test images"):
        open_source("digits", input_size=None, test=str(tmp_path))


def test_empty_folder_names_the_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no images: .*train/CLASS/.* and test/CLASS"):
        open_source(str(tmp_path), input_size=None)


@pytest.mark.parametrize("size", [(2, 8, 8), (3, 0, 8)])
def test_an_impossible_input_size_is_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match="give 1 or 3 channels"):
        open_source("digits", input_size=size)


def test_splits_of_different_size_are_refused() -> None:
    train = InMemory(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), [0, 1])
    test = InMemory(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0, 1])
    with pytest.raises(UserError, match="training images are 1x8x8 and test images 3x8x8"):
        Source(train, test, ("a", "b"), "", train.size)
