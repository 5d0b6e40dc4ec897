"""Further images without labels: what they are for, what is refused, and that runs know them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import updp
from tests import tiny
from tests.tiny import open_inputs
from updp import UserError
from updp.data import open_source
from updp.io import processes
from updp.io.files import read_json
from updp.run.unlabelled import open_unlabelled_images
from updp.stages.context import InputNames

pytestmark = pytest.mark.usefixtures("fixed_clock")

TAUGHT = {"epochs": 1, "distill": 1, "checks": 1}
DATA = {"held_out": 8, "calibration": 8, "batch_size": 8}


def images(folder: Path, count: int, seed: int, *, size: int = 8) -> Path:
    """A folder of that many grey pictures of noise."""
    folder.mkdir(parents=True)
    rng = np.random.Generator(np.random.PCG64(seed))
    for number in range(count):
        pixels = rng.integers(0, 256, (size, size), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split, seed in (("train", 0), ("test", 1)):
        for label in (0, 1):
            images(tmp_path / "data" / split / str(label), 20, 2 * seed + label)
    return tmp_path / "data"


def recipe() -> updp.Recipe:
    return tiny.make_recipe(data=DATA, supernet={"epochs": 0}, subnet=TAUGHT)


def prune(model: str, data: Path, out: Path, **given: object) -> updp.Pruned:
    return updp.prune(model, str(data), recipe(), out=out, **given)


def test_stage_3_alone_trains_on_them(tiny_model: str, data: Path, tmp_path: Path) -> None:
    prune(tiny_model, data, tmp_path / "without")
    more = images(tmp_path / "more", 30, 9, size=11)  # of any size
    prune(tiny_model, data, tmp_path / "with", unlabelled=more)
    stages = ("supernet/key.json", "search/plan.json", "subnet/start.safetensors")
    same = [
        (tmp_path / "without" / name).read_bytes() == (tmp_path / "with" / name).read_bytes()
        for name in (*stages, "subnet/figures.jsonl")
    ]
    assert same == [True, True, True, False]
    assert read_json(tmp_path / "with/run.json")["unlabelled"] == str(more)
    again = tiny.updp("merge", "--model", tiny_model, "--out", tmp_path / "with")
    assert (again.code, again.err) == (0, "")  # with what the directory knows

    # Others make another run, and the search is kept.
    other = images(tmp_path / "other", 30, 10)
    with pytest.raises(
        UserError, match=r"the unlabelled images are not those of that run; .*subnet"
    ):
        prune(tiny_model, data, tmp_path / "with", unlabelled=other)


def test_images_of_the_test_split_among_them_are_said(
    tiny_model: str, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_inputs(tiny_model, str(data), recipe(), unlabelled=data / "test" / "1")
    assert "20 of 40 test images looked at are among 20 of the" in caplog.text


@pytest.mark.parametrize(
    ("subnet", "name", "said"),
    [
        ({"epochs": 0}, "more", "is for the training of stage 3, and the recipe has none: take"),
        (
            {"epochs": 1},
            "more",
            "subnet.distill=0.9 trains on labels, too, which these images lack",
        ),
        (TAUGHT, "none", "--unlabelled '.*none' is not there: give a folder"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    subnet: dict, name: str, said: str, tiny_model: str, data: Path, tmp_path: Path
) -> None:
    images(tmp_path / "more", 4, 9)
    wanted = tiny.make_recipe(data=DATA, supernet={"epochs": 0}, subnet=subnet)
    with pytest.raises(UserError, match=said):
        updp.prune(tiny_model, str(data), wanted, out=tmp_path / "r", unlabelled=tmp_path / name)
    assert not (tmp_path / "r").exists()


def test_they_are_beside_image_files(tiny_model: str, tmp_path: Path) -> None:
    more = images(tmp_path / "more", 4, 9)
    loaded = TensorDataset(torch.rand(60, 1, 8, 8), torch.arange(60) % 10)
    with pytest.raises(UserError, match="is a path and the data is none"):
        open_inputs(tiny_model, (loaded, loaded), recipe(), unlabelled=more)


def test_each_process_has_an_image_of_either_kind(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(data), input_size=None)
    names = InputNames(data=str(data), unlabelled=str(data / "test" / "1"))
    assert open_unlabelled_images(names, source, recipe())[0] is not None
    monkeypatch.setattr(processes, "count", lambda: 8)
    with pytest.raises(UserError, match=r"data.batch_size=8 has no room for two images in each"):
        open_unlabelled_images(names, source, recipe())
