import pytest
import torch
from torch import nn

from updp.data import Preprocess, model_input_size, preprocess_for
from updp.errors import UserError

IMAGENET = (0.485, 0.456, 0.406)


class Configured(nn.Module):
    pretrained_cfg = {  # noqa: RUF012
        "input_size": (3, 48, 48),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
    }


def test_bytes_are_normalised_to_float() -> None:
    batch = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    out = Preprocess((0.5,), (0.25,), (1, 1, 1))(batch)
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == [-2.0, 2.0]


def test_float_batches_pass_through() -> None:
    batch = torch.rand(2, 1, 3, 3)
    assert Preprocess((0.5,), (0.25,), (1, 3, 3))(batch) is batch


def test_the_models_own_configuration_is_used() -> None:
    found = preprocess_for(Configured(), (3, 32, 32))
    assert found == Preprocess((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (3, 48, 48))
    assert model_input_size(Configured()) == (3, 48, 48)
    assert model_input_size(nn.Identity()) is None


def test_arguments_override_the_models_configuration() -> None:
    found = preprocess_for(Configured(), None, std=(1, 1, 1), input_size=(3, 8, 8))
    assert found == Preprocess((0.1, 0.2, 0.3), (1, 1, 1), (3, 8, 8))


def test_defaults_are_imagenets_or_one_half_for_grey() -> None:
    assert preprocess_for(nn.Identity(), (3, 8, 8)).mean == IMAGENET
    assert preprocess_for(nn.Identity(), (1, 8, 8)) == Preprocess((0.5,), (0.5,), (1, 8, 8))
    assert preprocess_for(Configured(), None, input_size=(1, 8, 8)).mean == (0.5,)


def test_impossible_preprocessing_is_refused() -> None:
    with pytest.raises(UserError, match="pass an input size"):
        preprocess_for(nn.Identity(), None)
    with pytest.raises(UserError, match=r"mean \(0.5,\) has 1 values for images of 3 channels"):
        preprocess_for(nn.Identity(), (3, 8, 8), mean=[0.5])
    with pytest.raises(UserError, match=r"mean .* is that of pixels from 0 to 255, .* divide mean"):
        preprocess_for(nn.Identity(), (3, 8, 8), mean=[123, 117, 104], std=[58, 57, 57])
    with pytest.raises(UserError, match="must be positive"):
        preprocess_for(nn.Identity(), (1, 8, 8), std=[0.0])
