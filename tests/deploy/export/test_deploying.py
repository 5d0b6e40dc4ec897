"""The code of docs/guides/deploying.md, run as it stands where there is no updp."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from tests.extras import needs
from tests.sampling import slow
from updp.data.decoding import decode
from updp.data.images import resize_and_crop
from updp.data.preprocess import Preprocess
from updp.data.resizing import ResizeCrop
from updp.deploy.export import FORMATS
from updp.deploy.export.describe import describe
from updp.io.files import write_json
from updp.run.finished import open_finished_run

PAGE = Path(__file__).parents[3] / "docs/guides/deploying.md"
CODE = dict(re.findall(r"```python title=\"([\w.]+)\"\n(.*?)```", PAGE.read_text(), re.DOTALL))
IMAGES = 6

# Nothing of these can be imported, and nothing can reach a network.
BLOCKER = """
import socket
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)


def refuse(*args, **kwargs):
    raise AssertionError("the network was asked for")


sys.meta_path.insert(0, Blocker())
socket.socket.connect = socket.getaddrinfo = refuse
"""

LOOP = """
import sys, warnings
from pathlib import Path

warnings.simplefilter("ignore")
for name in {names}:
    code = compile(Path(name + "_code.py").read_text(), name, "exec")
    for index in range({images}):
        Path("photo.png").write_bytes(Path(f"photo{{index}}.png").read_bytes())
        exec(code, {{}})
"""


def pictures(count: int) -> list[NDArray[np.uint8]]:
    """Digits in colour (H, W, 3), of other sizes than the network's."""
    values = load_digits().images[:count] * 15
    tints = np.random.default_rng(0).uniform(0.5, 1, (count, 3))
    coloured = (values[..., None] * tints[:, None, None]).astype(np.uint8)
    return [
        np.array(Image.fromarray(one).resize((20 + i % 9, 31 - i % 7)))
        for i, one in enumerate(coloured)
    ]


@pytest.fixture(scope="module")
def place(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the exported files, images, and the page's code."""
    folder = tmp_path_factory.mktemp("deployed")
    opened = open_finished_run(finished)
    write_json(folder / "preprocess.json", describe(opened))
    torch.manual_seed(0)  # the run's own model has learnt so little that it says one class always
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10, bias=False)
    model = nn.Sequential(*layers).eval()
    for one in FORMATS.values():
        if all(find_spec(package) for package in one.packages):
            one.write(model, torch.zeros(1, 1, 8, 8), folder / f"model{one.suffix}")
    for name, code in CODE.items():
        file = name if name.endswith(".py") else f"{name}_code.py"
        (folder / file).write_text(code)
    expected: list[str] = []
    for picture in pictures(100):
        pixels = resize_and_crop(Image.fromarray(picture), opened.shape)  # type: ignore[arg-type]
        images = opened.feed.preprocess(torch.tensor(pixels)[None])
        name = opened.classes[model(images).argmax()]
        if expected.count(name) < 2 and len(expected) < IMAGES:
            Image.fromarray(picture).save(folder / f"photo{len(expected)}.png")
            expected.append(name)
    assert len(set(expected)) > 1
    (folder / "images.txt").write_text(str(len(expected)))
    (folder / "expected.txt").write_text("\n".join(expected))
    return folder


@pytest.mark.parametrize(
    ("names", "blocked"),
    [
        pytest.param(
            ["onnx", "openvino"],
            {"updp", "torch", "timm", "torchvision", "openvino_telemetry"},
            marks=(needs("onnx"), needs("openvino")),
        ),
        slow(["pt2", "safetensors"], {"updp"}),
    ],
)
def test_every_runtime_classifies_without_updp(
    place: Path, tmp_path: Path, names: list[str], blocked: set[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(blocked=blocked))
    (tmp_path / "loop.py").write_text(
        LOOP.format(names=names, images=(place / "images.txt").read_text())
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{place}", "OMP_NUM_THREADS": "1", "HOME": "/nowhere"}

    def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)

    assert "updp is blocked" in python("-c", "import updp").stderr
    ended = python(tmp_path / "loop.py")
    assert ended.returncode == 0, ended.stderr
    expected = (place / "expected.txt").read_text().split()
    assert ended.stdout.split() == expected * len(names)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation"),
    [((3, 7, 12), 0.8, "bicubic"), ((1, 8, 8), 1.0, "bilinear"), ((3, 16, 16), 0.875, "bicubic")],
)
def test_prepare_does_what_the_data_reader_does(
    size: tuple[int, int, int],
    crop_pct: float,
    interpolation: str,
    mode: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = timm.data.create_transform((3, 7, 12), interpolation="bicubic").transforms[0]
    if size[1] != size[2] and "bicubic" not in str(first):
        pytest.skip("this version of timm resizes to oblongs by bilinear interpolation alone")
    channels = size[0]
    resize = ResizeCrop(size, crop_pct, mode, interpolation, (0.5, 0.4, 0.3)[:channels])
    preprocess = Preprocess((0.5, 0.4, 0.3)[:channels], (0.2, 0.3, 0.1)[:channels], size)
    prepare = page_code(resize, preprocess, finished, tmp_path, monkeypatch)
    for picture in pictures(5):
        Image.fromarray(picture).save("photo.png")
        expected = preprocess(torch.tensor(resize(Image.fromarray(picture)))[None])
        given = torch.from_numpy(prepare("photo.png"))
        assert given.dtype == torch.float32
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)


def page_code(
    resize: ResizeCrop,
    preprocess: Preprocess,
    finished: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], NDArray[np.float32]]:
    """`prepare` of the page, in a folder whose preprocess.json has these settings."""
    opened = open_finished_run(finished)
    opened.feed.resize, opened.feed.preprocess = resize, preprocess
    write_json(folder / "preprocess.json", describe(replace(opened, shape=resize.size)))
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(CODE["prepare.py"], names)
    return names["prepare"]  # type: ignore[no-any-return]


def drawn(high: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, high, (9, 12, 4))


# By file name, pictures of each of Pillow's modes.
MODES = {
    "16 bits.png": lambda: Image.fromarray(drawn(65536)[..., 0].astype(np.uint16)),
    "16 bits.pgm": lambda: Image.fromarray(drawn(65536)[..., 0].astype(np.int32)),
    "16 bits, big-endian.tiff": lambda: Image.fromarray(drawn(65536)[..., 0].astype(">u2")),
    "32 bits.tiff": lambda: Image.fromarray(drawn(60000)[..., 0].astype(np.int32)),
    "floats.tiff": lambda: Image.fromarray((drawn(1000)[..., 0] / 1000).astype(np.float32)),
    "two colours.png": lambda: Image.fromarray(drawn(2)[..., 0] == 1),
    "grey.png": lambda: Image.fromarray(drawn(256)[..., 0].astype(np.uint8)),
    "grey, transparent.png": lambda: Image.fromarray(drawn(256).astype(np.uint8)).convert("LA"),
    "transparent.png": lambda: Image.fromarray(drawn(256).astype(np.uint8)),
    "palette.gif": lambda: Image.fromarray(drawn(256)[..., :3].astype(np.uint8)).quantize(16),
    "ink.jpg": lambda: Image.fromarray(drawn(256)[..., :3].astype(np.uint8)).convert("CMYK"),
}


@pytest.mark.parametrize("channels", [3, 1])
def test_prepare_reads_every_kind_of_picture_as_the_data_reader_does(
    channels: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize = ResizeCrop((channels, 8, 8), 0.875, "center", "bicubic")
    preprocess = Preprocess((0.5, 0.4, 0.3)[:channels], (0.2, 0.3, 0.1)[:channels], resize.size)
    prepare = page_code(resize, preprocess, finished, tmp_path, monkeypatch)
    for name, picture in MODES.items():
        picture().save(name)
        pixels = resize(decode(Path(name).read_bytes(), name))
        expected = preprocess(torch.tensor(pixels)[None])
        given = torch.from_numpy(prepare(name))
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-6, msg=name)
