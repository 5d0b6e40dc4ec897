import shutil
from pathlib import Path

import pytest
from PIL import Image

from updp.data import open_source
from updp.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes; the image's grey tells which. No test image of the first class."""
    root = tmp_path / "data"
    for name, grey in [
        ("train/cat/1.png", 10),
        ("train/cat/deep/2.png", 10),
        ("train/dog/1.png", 90),
        ("val/dog/1.png", 90),
    ]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), grey).save(path)
    (root / "train/dog/notes.txt").write_text("not an image")
    (root / "train/.cache").mkdir()
    return root


def test_labels_follow_the_training_folders(root: Path) -> None:
    source = open_source(str(root), input_size=None)
    assert source.classes == ("cat", "dog")
    assert source.image_size == (1, 3, 4)
    greys = {(int(image[0, 0, 0]), label) for image, label in (source.train[i] for i in range(3))}
    assert greys == {(10, 0), (90, 1)}
    assert source.test[0][1] == 1


def test_fingerprint_is_of_contents_not_place(root: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return open_source(str(folder), input_size=None).fingerprint

    copy = shutil.copytree(root, tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(root)
    Image.new("L", (4, 3), 11).save(copy / "train/cat/1.png")
    assert fingerprint(copy) != fingerprint(root)


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_bad_image_is_named(root: Path, content: bytes) -> None:
    (root / "train/dog/1.png").write_bytes(content)
    with pytest.raises(UserError, match=r"image 'train/dog/1\.png'"):
        open_source(str(root), input_size=None)


def test_a_class_without_training_images_is_refused(root: Path) -> None:
    (root / "val/emu").mkdir()
    with pytest.raises(UserError, match="class 'emu'"):
        open_source(str(root), input_size=None)


def test_a_folder_with_one_split_is_refused(root: Path) -> None:
    shutil.rmtree(root / "val")
    with pytest.raises(UserError, match="needs train/CLASS"):
        open_source(str(root), input_size=None)


def test_a_split_without_images_is_refused(root: Path) -> None:
    (root / "val/dog/1.png").unlink()
    with pytest.raises(UserError, match="val' holds no images"):
        open_source(str(root), input_size=None)
