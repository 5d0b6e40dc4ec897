"""What users hand over as data: broken items, odd splits, images of any kind, hostile files."""

import io
import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from tests import tiny
from tests.faults.net import Net
from tests.tiny import open_inputs
from updp import UserError
from updp.data import decoding, from_loaders, open_source
from updp.data.readers import parquet
from updp.stages.context import RunInputs

pytestmark = pytest.mark.usefixtures("one_thread")


class Items(Dataset[tuple[Any, Any]]):
    """Random grey images of ten classes; `changed` says what some items do instead."""

    def __init__(
        self, changed: dict[int, Callable[[], Any]] | None = None, targets: Any = None, n: int = 300
    ) -> None:
        self.images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(n))
        self.changed, self.count = changed or {}, n
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if index in self.changed:
            return self.changed[index]()
        return self.images[index], index % 10


def fails() -> Any:
    raise OSError("disk\nsecond line")


def item(value: float = 0.0, label: Any = 0) -> Callable[[], Any]:
    return lambda: (torch.full((1, 8, 8), value), label)


TEST = Items(n=40)


# -- data sets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (fails, r"cannot be read \(OSError: disk\): mend the data set, or .* data.skip_corrupt"),
        (item(float("nan")), r"has 64 of 64 values that are NaN or infinite: mend it, or leave"),
        (item(float("inf")), "has 64 of 64 values that are NaN or infinite"),
        (item(label="cat"), r"has the label 'cat' \(str\)"),
        (item(label=float("nan")), r"has the label nan \(float\)"),
        (item(label=-1), "has the label -1: class indices start at 0"),
        (item(label=10**12), "has the label 1000000000000: class indices are below 1000000"),
        (item(label=torch.eye(4)[1]), r"has a label of shape \(4,\): .* label.argmax\(\)"),
        (lambda: (torch.zeros(64), 0), r"is tensor \(64,\): updp reads pairs"),
    ],
)
def test_an_item_that_is_broken_is_named(change: Callable[[], Any], says: str) -> None:
    with pytest.raises(UserError, match=rf"^item 250 of the training loader {says}"):
        from_loaders(Items({250: change}), TEST)


def test_a_broken_item_is_named_when_it_is_read_where_labels_are_listed() -> None:
    data = Items({250: fails}, targets=[i % 10 for i in range(300)])
    with pytest.raises(UserError, match=r"^item 250 of the training loader cannot be read"):
        from_loaders(data, TEST).train[250]


def test_listed_labels_that_differ_are_not_believed() -> None:
    half = from_loaders(Items(targets=[i % 10 if i < 150 else 0 for i in range(300)]), TEST)
    assert list(half.train.targets) == [i % 10 for i in range(300)]
    one = [i % 10 for i in range(300)]
    one[1] = 7
    with pytest.raises(UserError, match=r"item 1 .* has the label 1, and its data set lists 7 for"):
        from_loaders(Items(targets=one), TEST).train[1]


def test_items_that_cannot_be_read_are_skipped_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = {0: fails, 7: item(float("nan")), 250: fails}
    source = from_loaders(Items(bad), TEST, skip_corrupt=True)
    assert list(source.train.targets) == [i % 10 for i in range(300) if i not in bad]
    assert torch.equal(source.train[0][0], Items().images[1])
    assert "3 of 300 images of the training loader are skipped (data.skip_corrupt)" in caplog.text
    assert "as item 0 of the training loader cannot be read (OSError: disk)" in caplog.text
    with pytest.raises(UserError, match="none of the 2 images of the training loader can be read"):
        from_loaders(Items({0: fails, 1: fails}, n=2), TEST, skip_corrupt=True)


# -- model and data together ---------------------------------------------------------------------


def opened(model: Any, data: Any, **settings: Any) -> RunInputs:
    split = {"held_out": 20, "calibration": 20, **settings}
    return open_inputs(model, data, tiny.make_recipe(data=split))


def scaled(key: str, factor: float) -> nn.Module:
    net = Net()
    net.state_dict()[key].mul_(factor)
    return net


class OneOutput(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :1]


class Failing(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x.any():
            raise RuntimeError("only zeros")
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "pixels", "says"),
    [
        (lambda: scaled("head.weight", 0), 1, "gives the same logits for each of 20 held-out"),
        (lambda: scaled("head.weight", 1e15), 1, r"logits of 20 held-out images are as large as"),
        (lambda: scaled("norm.running_var", -1e9), 1, "are NaN or infinite for 20 of 20 held-out"),
        (Net, 1e30, "are as large as .* are the images normalised as it was trained with"),
        (OneOutput, 1, "the model has 1 output: updp compares the probabilities of two classes"),
        (Failing, 1, "the model fails on 20 held-out samples: RuntimeError: only zeros"),
    ],
)
def test_a_model_that_is_of_no_use_on_its_images_is_refused_at_once(
    model: Callable[[], nn.Module], pixels: float, says: str
) -> None:
    data, labels = Items(n=120), torch.zeros(120, dtype=torch.long)
    with pytest.raises(UserError, match=says):
        opened(model(), (TensorDataset(data.images * pixels, labels), TEST))


def test_one_class_alone_and_images_that_are_all_alike_are_no_fault() -> None:
    zeros = torch.zeros(120, dtype=torch.long)
    data = TensorDataset(torch.ones(120, 1, 8, 8), zeros)
    inputs = opened(Net(), (data, data), batch_size=500)
    assert len(inputs.classes) == 10
    assert next(inputs.feed.training(0))[0].shape[0] == 80  # a batch larger than the set


@pytest.mark.parametrize(
    ("count", "says"),
    [(0, "training loader's data set is empty"), (1, "data.held_out=20 and .* of the 1 training")],
)
def test_too_few_images_are_refused(count: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        opened(Net(), (Items(n=count), TEST))
    with pytest.raises(UserError, match="test loader's data set is empty"):
        opened(Net(), (TEST, Items(n=0)))
    assert len(opened(Net(), (Items(n=100), Items(n=1))).feed._test) == 1


# -- image files ---------------------------------------------------------------------------------

UPRIGHT = np.zeros((8, 8), np.uint8)
UPRIGHT[:4, :4] = 255


def as_file(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return as_file(Image.fromarray(np.rot90(UPRIGHT).copy()), exif=exif)


GREY = Image.fromarray(UPRIGHT)
FILES = {
    "1.png": as_file(GREY),
    "16bit.png": as_file(Image.fromarray(UPRIGHT.astype(np.uint16) * 257)),
    "bilevel.png": as_file(GREY.convert("1")),
    "cmyk.tif": as_file(GREY.convert("RGB").convert("CMYK"), "TIFF"),
    "colour.bmp": as_file(GREY.convert("RGB"), "BMP"),
    "larger.png": as_file(GREY.resize((32, 32), Image.Resampling.NEAREST)),
    "palette.gif": as_file(GREY.convert("RGB").convert("P"), "GIF"),
    "palette.png": as_file(GREY.convert("RGB").convert("P")),
    "transparent.png": as_file(GREY.convert("RGBA")),
    "turned.png": turned(),
}


def folder(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_picture_in_many_forms_has_the_same_pixels(channels: int, tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder(tmp_path / split / "a", FILES)
    source = open_source(str(tmp_path), input_size=(channels, 8, 8))
    wanted = np.broadcast_to(UPRIGHT, (channels, 8, 8)).astype(int)
    for index, name in enumerate(sorted(FILES)):
        found = source.train[index][0].numpy().astype(int)
        # Only the enlarged one is resampled, at the edge.
        difference = np.abs(found - wanted)
        assert (difference.mean() < 15) if name == "larger.png" else difference.max() <= 1, name


def test_a_class_may_be_missing_from_a_split(tmp_path: Path) -> None:
    names = ("train/a/1.png", "train/b/2.png", "test/b/3.png", "test/c/4.png")
    files = {name: as_file(Image.new("L", (4, 4), i)) for i, name in enumerate(names)}
    source = open_source(folder(tmp_path, files), input_size=None)
    assert source.classes == ("a", "b", "c")
    assert [list(split.targets) for split in (source.train, source.test)] == [[0, 1], [1, 2]]


def test_corrupt_files_are_named_or_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {
        f"{split}/{c}/{i}.png": as_file(Image.new("L", (4, 4), 40 * j + 10 * i + (c == "a")))
        for j, split in enumerate(("train", "test"))
        for c in "ab"
        for i in range(4)
    }
    whole = open_source(folder(tmp_path, files), input_size=None, skip_corrupt=True)
    assert whole.fingerprint == open_source(str(tmp_path), input_size=None).fingerprint
    assert "skipped" not in caplog.text
    broken = {"train/a/0.png": b"", "train/b/2.png": files["train/b/2.png"][:50]}
    folder(tmp_path, {**broken, "test/a/1.png": b"no image"})
    with pytest.raises(UserError, match=r"'train/a/0.png' is empty .* data.skip_corrupt=true"):
        open_source(str(tmp_path), input_size=None)
    source = open_source(str(tmp_path), input_size=None, skip_corrupt=True)
    assert [int(image[0, 0, 0]) for image, _ in source.train] == [11, 21, 31, 0, 10, 30]
    assert list(source.train.targets) == [0, 0, 0, 1, 1, 1]
    assert len(source.test) == 7
    assert f"2 of 8 images of '{tmp_path}' are skipped (data.skip_corrupt)" in caplog.text
    assert "the first of them as image 'train/a/0.png' is empty (0 bytes)" in caplog.text
    assert source.fingerprint != whole.fingerprint


def test_pipes_are_no_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {"train/a/1.png": FILES["1.png"], "test/a/2.png": as_file(Image.new("L", (8, 8)))}
    folder(tmp_path, files)
    os.mkfifo(tmp_path / "train/a/2.png")
    assert len(open_source(str(tmp_path), input_size=None).train) == 1
    assert "1 files of" in caplog.text
    (tmp_path / "train/a/3.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"cannot be read"):
        open_source(str(tmp_path), input_size=None)


BOTH = ("train/a/1.png", "test/a/1.png")


# -- hostile files -------------------------------------------------------------------------------


def test_no_picture_is_handed_to_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*args: Any, **options: Any) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    eps = as_file(Image.new("RGB", (8, 8)), "EPS")
    with pytest.raises(UserError, match=r"'train/a/1.png' cannot be decoded \(no image format\)"):
        open_source(folder(tmp_path, dict.fromkeys(BOTH, eps)), input_size=None)


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    small = as_file(Image.new("L", (8, 8)))
    header = small[:16] + (20_000).to_bytes(4) * 2 + small[24:29]  # width and height
    bomb = header + zlib.crc32(header[12:29]).to_bytes(4) + small[33:]
    with pytest.raises(UserError, match=r"cannot be decoded \(DecompressionBombError"):
        open_source(folder(tmp_path, dict.fromkeys(BOTH, bomb)), input_size=None)


def test_large_pictures_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    real = decoding.to_eight_bits

    def noting(image: Image.Image, where: str) -> Image.Image:
        threads.append(threading.current_thread())
        return real(image, where)

    monkeypatch.setattr(decoding, "_LARGE", 63)
    monkeypatch.setattr(decoding, "to_eight_bits", noting)
    names = [f"{split}/a/{number}.png" for split in ("train", "test") for number in range(4)]
    folder(tmp_path, dict.fromkeys(names, FILES["1.png"]))
    source = open_source(str(tmp_path), input_size=None, skip_corrupt=True)
    assert all(np.array_equal(image[0], UPRIGHT) for image, _ in source.train)
    assert set(threads) == {threading.current_thread()}


def test_parquet_files_that_grow_when_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    def write(rows: int, data: bytes) -> None:
        column = pa.array([{"bytes": data, "path": "x.png"}] * rows)
        table = pa.table({"image": column, "label": pa.array([0] * rows)})
        pq.write_table(table, tmp_path / "train-0.parquet", compression="zstd")

    one = as_file(Image.new("L", (4, 4)))
    monkeypatch.setattr(parquet, "_MOST_BYTES", 2**20)
    write(500, one + bytes(10_000))  # a value that is stored once and read 500 times
    assert (tmp_path / "train-0.parquet").stat().st_size < 5_000
    with pytest.raises(UserError, match=r"row group 0 of '.*train-0.parquet' has more than"):
        open_source(str(tmp_path), input_size=None)
    write(90, one + bytes(10_000))
    assert len(open_source(str(tmp_path), input_size=None).train) == 81
    monkeypatch.setattr(parquet, "_ROWS", 1000)
    write(50_000, b"")
    with pytest.raises(UserError, match="says that it has 50000 rows, in fewer bytes"):
        open_source(str(tmp_path), input_size=None)


def test_one_image_without_a_test_split_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one image alone cannot be split into training and test"):
        open_source(folder(tmp_path, {"train/a/1.png": FILES["1.png"]}), input_size=None)
