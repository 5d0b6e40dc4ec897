import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.data.test_images import png
from updp.data import open_source
from updp.data.readers import tar
from updp.errors import UserError


def write(path: Path, members: dict[str, bytes], form: int, mtime: float = 0) -> None:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), mtime  # type: ignore[assignment]
            archive.addfile(member, io.BytesIO(data))


MEMBERS = {
    "a/1.png": png(4, 3, colour=1),
    "a/1.cls": b"7",
    "a/2.json": json.dumps({"label": 3, "cls": 9}).encode(),
    "a/2.seg.PNG": png(4, 3, colour=2),
    "a/3.txt": b"no image",
    "b/1.cls": b"0\n",
    "b/1.png": png(4, 3, colour=3),
    "b/1.seg.png": png(4, 3, colour=4),  # a mask beside the image
}
LONG = "x" * 60 + "/" + "y" * 60  # beyond a header's name


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize(
    ("form", "mtime"),
    [
        (tarfile.USTAR_FORMAT, 0),
        (tarfile.GNU_FORMAT, 0),
        (tarfile.PAX_FORMAT, 0),
        (tarfile.PAX_FORMAT, 1700000000.5),  # as webdataset writes it: one more header each
    ],
)
def test_samples_are_images_with_labels(
    tmp_path: Path, form: int, mtime: float, long: bool
) -> None:
    members = {f"{LONG}/{name}" if long else name: data for name, data in MEMBERS.items()}
    write(tmp_path / "imagenet1k-train-0000.tar", members, form, mtime)
    write(tmp_path / "imagenet1k-validation-0.tar", {"z.png": png(4, 3), "z.cls": b"9"}, form)
    source = open_source(str(tmp_path), input_size=None)
    assert list(source.train.targets) == [7, 3, 0]
    assert [int(source.train[i][0].max()) for i in range(3)] == [1, 2, 3]
    assert len(source.classes) == 10
    assert source.indexed


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"1.png": b"x", "2.png": b"x", "2.cls": b"1"}, "has an image '1' without a label and"),
        ({"1.png": b"x", "1.cls": b"cat"}, "'1.cls' of '.*' holds 'cat': names of classes are"),
        ({"1.png": b"x", "1.cls": b"-2"}, "has label -2: labels must be 0 or more"),
        ({"1.txt": b"x"}, "holds no images"),
        ({"1.png": b"x", "1.jpg": b"x"}, "two images of one sample, '1.png' and '1.jpg': leave"),
        ({"1.a.png": b"x", "1.b.png": b"x"}, "two images of one sample, '1.a.png' and '1.b.png'"),
        ({"1.png": b"junk", "1.cls": b"1"}, r"image 0 of 'train\.tar' \(at byte 512\) cannot be"),
    ],
)
def test_bad_samples_are_named(tmp_path: Path, members: dict[str, bytes], says: str) -> None:
    write(tmp_path / "train.tar", members, tarfile.GNU_FORMAT)
    write(tmp_path / "test.tar", {"z.png": png(4, 3), "z.cls": b"1"}, tarfile.GNU_FORMAT)
    with pytest.raises(UserError, match=says):
        open_source(str(tmp_path), input_size=None)


@pytest.mark.parametrize("keep", [0, 700, 1536])
def test_a_file_that_ends_early_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "train.tar"
    write(path, MEMBERS, tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"train\.tar' is not a readable tar file"):
        tar._read_index(path)
