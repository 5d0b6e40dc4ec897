import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from updp.data import open_source
from updp.data.classes import match_classes
from updp.data.images import NO_LABEL
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


def test_a_test_folder_without_classes_makes_way_for_one_with_some(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "test").mkdir()
    Image.new("L", (4, 3), 77).save(root / "test/1.png")
    source = open_source(str(root), input_size=None)
    assert [(int(image.max()), label) for image, label in [source.test[0]]] == [(90, 1)]
    assert "'test' has no labels, so 'val' is the test split" in caplog.text
    shutil.rmtree(root / "val")
    assert not open_source(str(root), input_size=None).test.labelled


def test_classes_are_those_of_both_splits(root: Path) -> None:
    shutil.copytree(root / "val/dog", root / "val/bee")
    source = open_source(str(root), input_size=None)
    assert source.classes == ("bee", "cat", "dog")
    assert sorted(source.train.targets) == [1, 1, 2]


def test_a_missing_test_split_is_split_off(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(root / "val")
    for number in range(3, 40):
        name = "cat" if number % 2 else "dog"
        Image.new("L", (4, 3), number).save(root / f"train/{name}/{number}.png")
    source = open_source(str(root), input_size=None)
    assert f"data '{root}' has no test split: 4 of its 40 images are split off" in caplog.text
    assert (len(source.train), sorted(source.test.targets)) == (36, [0, 0, 1, 1])
    greys = [int(image[0, 0, 0]) for split in (source.train, source.test) for image, _ in split]
    assert sorted(greys) == sorted([10, 10, 90, *range(3, 40)])
    again = open_source(str(root), input_size=None)
    assert again.fingerprint == source.fingerprint
    assert [int(image[0, 0, 0]) for image, _ in again.test] == greys[36:]
    shutil.move(root / "train", root / "test")
    with pytest.raises(UserError, match="has a test split alone: updp needs images to prune with"):
        open_source(str(root), input_size=None)


def test_another_test_split_takes_the_place_of_the_own(root: Path, tmp_path: Path) -> None:
    own = open_source(str(root), input_size=None)
    apart = open_source(str(root / "train"), input_size=None, test=str(root / "val"))
    assert (apart.classes, apart.train.targets, apart.test.targets) == (
        own.classes,
        own.train.targets,
        own.test.targets,
    )
    other = tmp_path / "other"
    for name in ("dog", "bee"):
        shutil.copytree(root / "val/dog", other / "test" / name)
    source = open_source(str(root), input_size=None, test=str(other))
    assert source.classes == ("bee", "cat", "dog")
    assert (source.train.targets, source.test.targets) == ([1, 1, 2], [0, 2])
    alone = open_source(str(root / "train"), input_size=None)
    assert len({each.fingerprint for each in (own, apart, source, alone)}) == 4
    with pytest.raises(UserError, match=r"--test 'nowhere' is not there: give a folder with train"):
        open_source(str(root), input_size=None, test="nowhere")


def count(root: Path) -> int:
    return len(open_source(str(root), input_size=None).train)


def test_leftovers_are_no_classes_and_no_images(root: Path) -> None:
    for name in (
        ".ipynb_checkpoints",
        "cat/.ipynb_checkpoints",
        "@eaDir",
        "__MACOSX",
        "dog/@eaDir",
    ):
        shutil.copytree(root / "train/cat/deep", root / "train" / name)
    shutil.copy(root / "train/cat/1.png", root / "train/cat/._1.png")
    source = open_source(str(root), input_size=None)
    assert source.classes == ("cat", "dog")
    assert len(source.train) == 3


def test_links_are_followed_once(root: Path, tmp_path: Path) -> None:
    shutil.move(root / "train/cat/deep", tmp_path / "far")
    (root / "train/cat/far").symlink_to(tmp_path / "far")
    (root / "train/cat/again").symlink_to(tmp_path / "far")
    assert count(root) == 3
    (tmp_path / "far/up").symlink_to(root / "train/cat")
    (root / "train/cat/self").symlink_to(".")
    (root / "train/dog/up").symlink_to("..")
    (root / "train/dog/root").symlink_to(root)
    assert count(root) == 3


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".avif", ".webp", ".tiff", ".JPG"])
def test_usual_extensions_are_read(root: Path, suffix: str) -> None:
    if suffix.lower() not in Image.registered_extensions():
        pytest.skip(f"this Pillow has no {suffix}")
    Image.new("L", (4, 3)).save(root / f"train/dog/2{suffix}")
    assert open_source(str(root), input_size=(1, 3, 4)).train.targets == [0, 0, 1, 1]


def test_files_that_are_left_out_are_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "train/dog/2.heic").write_bytes(b"x")
    shutil.copy(root / "train/cat/1.png", root / "train/1.png")
    assert count(root) == 3
    assert "3 files of" in caplog.text
    assert "(.heic, .png, .txt)" in caplog.text


def test_names_need_not_be_utf8(root: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    shutil.copytree(root / "train/dog", root / "train" / name)
    (root / "train" / name / "1.png").rename(root / "train" / name / f"{name}.png")
    source = open_source(str(root), input_size=None)
    assert source.classes == ("caf\\xe9", "cat", "dog")
    assert len(source.train) == 4
    (root / "train" / name / f"{name}.png").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"image 'train/caf\\xe9/caf\\xe9\.png' cannot") as error:
        open_source(str(root), input_size=None)
    str(error.value).encode()


def test_images_in_no_class_folder_have_no_labels(root: Path) -> None:
    for split in ("train", "val"):
        for number, path in enumerate(sorted((root / split).rglob("*.png"))):
            path.rename(root / split / f"{number}.png")
        for entry in (root / split).iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
    source = open_source(str(root), input_size=None)
    assert not source.labelled
    assert (len(source.train), len(source.test)) == (3, 1)
    assert match_classes(source, 10, model="m", data="d").classes[9] == "9"
    flat = open_source(str(root / "train"), input_size=None)
    assert (len(flat.train), list(flat.test.targets)) == (2, [NO_LABEL])


def test_unlabelled_images_may_have_a_labelled_test_split(root: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(3):
        Image.new("L", (4, 3), number).save(flat / f"{number}.png")
    source = open_source(str(flat), input_size=None, test=str(root / "train"))
    (tmp_path / "flat/classes.txt").write_text("dog\nowl\ncat\n")
    ordered = open_source(str(flat), input_size=None, test=str(root / "train"))
    assert source.classes == ("cat", "dog")
    assert (source.train.targets, source.test.targets) == ([NO_LABEL] * 3, [0, 0, 1])
    assert ordered.classes == ("dog", "owl", "cat")
    assert (ordered.train.targets, ordered.test.targets) == ([NO_LABEL] * 3, [2, 2, 0])


def test_images_in_both_splits_are_warned_of(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_source(str(root), input_size=None)
    assert "1 of 1 test images looked at are among 2 of the training images" in caplog.text


def test_a_split_without_images_is_refused(root: Path) -> None:
    (root / "val/dog/1.png").unlink()
    with pytest.raises(UserError, match="val' holds no images"):
        open_source(str(root), input_size=None)


def test_splits_under_other_names_are_no_classes(root: Path) -> None:
    (root / "train").rename(root / "Train")
    (root / "val").rename(root / "VAL")
    with pytest.raises(UserError, match=r"has the folders Train, VAL, .* its classes: call"):
        open_source(str(root), input_size=None)
    (root / "Train").rename(root / "train")
    assert open_source(str(root), input_size=None).classes == ("cat", "dog")


def test_a_folder_around_the_data_names_it(root: Path, tmp_path: Path) -> None:
    inside = tmp_path / "outer" / "data"
    shutil.copytree(root, inside)
    with pytest.raises(UserError, match=f"holds no train or test .* did you mean {inside}"):
        open_source(str(inside.parent), input_size=None)


@pytest.mark.parametrize("name", ["training", "Train"])
def test_a_train_folder_of_another_name_is_named(name: str, root: Path) -> None:
    (root / "train").rename(root / name)
    with pytest.raises(UserError, match=f"beside the folder '{name}': rename it to train"):
        open_source(str(root), input_size=None)


def test_class_folders_without_images_count_as_classes_and_are_named(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = open_source(str(root), input_size=None)
    assert "count as classes" not in caplog.text
    (root / "train" / "zzz").mkdir()
    source = open_source(str(root), input_size=None)
    assert source.classes == (*before.classes, "zzz")
    assert "has a class folder without images, each still a class: zzz" in caplog.text
