"""Evaluation's resize and crop, against timm's own transform."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tests.tiny import open_inputs
from updp import Recipe
from updp.data import ResizeCrop, preprocess_for, resize_for
from updp.errors import UserError

NETWORKS = {  # the names in ../shared/data/weights, and how timm makes them
    "deit_tiny_patch16_224": ("deit_tiny_patch16_224", {}),
    "mobilenetv2_100_same": ("mobilenetv2_100", {"pad_type": "same"}),
    "tf_efficientnet_lite0": ("tf_efficientnet_lite0", {}),
}


def network(name: str, weights: Path | None = None) -> nn.Module:
    timms, options = NETWORKS[name]
    with torch.random.fork_rng():
        model = timm.create_model(timms, **options).eval()
    if weights is not None:
        model.load_state_dict(load_file(weights / f"imagenet_{name}.safetensors"))
    return model


def rows(file: Path, count: int) -> Iterator[tuple[Image.Image, int]]:
    for row in pq.read_table(file).slice(0, count).to_pylist():
        yield Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"), row["label"]


@pytest.mark.parametrize("name", NETWORKS)
def test_pixels_are_those_of_the_models_own_timm_transform(name: str, shared_data: Path) -> None:
    model = network(name)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    resize = resize_for(model)
    preprocess = preprocess_for(model, None)
    # Of many shapes; those of imagenet_val have one.
    for picture, _ in rows(shared_data / "imagenet_sample" / "val.parquet", 3):
        mine = preprocess(torch.from_numpy(resize(picture))[None])[0]
        assert torch.equal(mine, theirs(picture))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(3, 20, 20), (3, 24, 15), (1, 18, 18)])
def test_every_crop_mode_is_timms(mode: str, size: tuple[int, int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (31, 50, 3), np.uint8)
    picture = Image.fromarray(noise)
    mean = (0.2, 0.9, 0.4)[: size[0]]
    theirs = timm.data.create_transform(
        size[1:], crop_pct=0.8, crop_mode=mode, interpolation="bicubic", mean=mean, normalize=False
    )
    mine = ResizeCrop(size, 0.8, mode, "bicubic", mean)(picture)
    expected = theirs(picture if size[0] == 3 else picture.convert("L"))
    assert np.array_equal(mine, expected.numpy())
    assert mine.shape == size


def test_the_recipe_comes_first_then_the_models_configuration() -> None:
    model = network("deit_tiny_patch16_224")
    assert resize_for(model, crop_pct=1, interpolation="bilinear", input_size=(3, 8, 8)) == (
        ResizeCrop((3, 8, 8), 1, "center", "bilinear", (0.485, 0.456, 0.406))
    )
    assert resize_for(nn.Identity()) is None
    assert resize_for(nn.Identity(), input_size=(1, 8, 8)) == ResizeCrop((1, 8, 8), 1.0)


def test_nothing_is_cropped_where_the_configuration_does_not_say() -> None:
    class Cifar(nn.Module):
        pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3}  # noqa: RUF012

    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert np.array_equal(resize_for(Cifar())(Image.fromarray(noise)), noise.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("data.crop_pct=0.9",), "data.crop_pct=0.9 crops to no size: set data.input_size, too"),
        (("data.interpolation=cubic",), "data.interpolation: it takes 'nearest'"),
        (("data.crop_pct=0",), "data.crop_pct: it takes at least 0.1"),
    ],
)
def test_a_crop_that_cannot_be_is_refused(settings: tuple[str, ...], says: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UserError, match=says):
        open_inputs(model, "digits", Recipe().updated(*settings), searches=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_evaluate_as_timm_evaluates_them(name: str, shared_data: Path) -> None:
    """By default settings, on all 1,300 validation images: the same class for each."""
    model, validation = network(name, shared_data / "weights"), shared_data / "imagenet_val"
    data = str(shared_data / "imagenet_sample")
    inputs = open_inputs(model, data, Recipe(), test=str(validation), device="cpu", searches=False)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        mine = torch.cat([inputs.baseline(images).argmax(1) for images, _ in inputs.feed.test()])
        expected = [
            int(model(theirs(picture)[None]).argmax())
            for picture, _ in rows(validation / "test.parquet", 1300)
        ]
    assert mine.tolist() == expected
