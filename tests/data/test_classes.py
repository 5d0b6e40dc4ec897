import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.data import ImageNetInfo

from updp.data import Source, match_classes
from updp.data.classes import order_classes, read_class_file
from updp.data.images import InMemory
from updp.errors import UserError


def source(*classes: str, indexed: bool = False) -> Source:
    """One image of each class in both splits."""

    def images() -> InMemory:
        count = len(classes)
        return InMemory(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), list(range(count)))

    return Source(images(), images(), classes, "f", (1, 2, 2), indexed=indexed)


def matched(given: Source, outputs: int) -> Source:
    return match_classes(given, outputs, model="model 'm'", data="data 'd'")


def test_as_many_classes_are_taken_in_their_order() -> None:
    given = source("10", "2", "b")  # as torchvision's ImageFolder sorts them
    assert matched(given, 3) is given


def test_fewer_numbers_are_outputs_of_the_model() -> None:
    found = matched(source("0", "1", "2", indexed=True), 5)
    assert list(found.train.targets) == [0, 1, 2]
    assert (len(found.classes), found.fingerprint) == (5, "f")


def test_fewer_folders_go_by_index() -> None:
    found = matched(source("007", "0", "12"), 13)
    assert list(found.train.targets) == list(found.test.targets) == [7, 0, 12]
    assert (len(found.classes), found.classes[12]) == (13, "12")
    assert found.fingerprint not in ("f", matched(source("006", "0", "12"), 13).fingerprint)


@pytest.mark.parametrize(
    "names",
    [
        ("n02979186", "n01440764", "n03888257"),
        ("n02979186 cassette player", "n01440764 tench", "n03888257 parachute"),
        ("cassette player", "tench", "parachute"),
        ("cassette player", "tench, Tinca tinca", "parachute, chute"),
    ],
)
def test_fewer_folders_go_by_imagenets_names(names: tuple[str, ...]) -> None:
    found = matched(source(*names), 1000)
    assert list(found.train.targets) == [482, 0, 701]  # as shared/data/README.md has them
    assert found.classes == tuple(ImageNetInfo("imagenet-1k").label_names())


@pytest.mark.parametrize(
    ("given", "outputs", "says"),
    [
        (source("a", "b", "c"), 2, "model 'm' has 2 classes and data 'd' 3: give a model made"),
        (source("0", "1", "2", indexed=True), 2, "data 'd' has label 2 and model 'm' 2 classes"),
        (source("a", "b"), 3, "model 'm' has 3 classes and data 'd' 2, such as 'a': name them by"),
        (source("n01440764", "crane"), 1000, "such as"),  # a bird and a machine
        (source("1", "01"), 3, "such as"),
        (source("1", "3"), 3, "such as"),
    ],
)
def test_classes_that_cannot_be_found_are_refused(given: Source, outputs: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        matched(given, outputs)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.txt", "dog\nbee\n\ncat\n"),
        ("classes.json", json.dumps(["dog", "bee", "cat"])),
        ("classes.json", json.dumps({"cat": 2, "dog": 0, "bee": 1})),
        ("classes.json", json.dumps({"0": ["n01", "dog"], "1": "bee", "2": "cat"})),
    ],
)
def test_a_file_orders_the_classes(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    order = read_class_file(tmp_path)
    assert order is not None
    found = matched(order_classes(source("cat", "dog"), order, file), 4)
    assert list(found.train.targets) == [2, 0]
    assert len(found.classes) == 4
    with pytest.raises(UserError, match=f"class 'emu' of the data is not in '{file}'"):
        order_classes(source("cat", "emu"), order, file)
    numbered = replace(source("0", "1", "2", "3"), indexed=True)
    with pytest.raises(UserError, match=f"'{file}' names 3 classes and the data has 4: add the"):
        order_classes(numbered, order, file)


def test_a_file_that_lists_no_classes_is_refused(tmp_path: Path) -> None:
    assert read_class_file(tmp_path) is None
    for text in ("{", "3", '{"a": "b"}', '{"a": 0, "b": 2}'):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(UserError, match=r"classes\.json' cannot be read"):
            read_class_file(tmp_path)


@pytest.mark.parametrize(
    ("names", "warned"),
    [(("0", "1", "10", "2"), True), (("0", "1", "2"), False), (("10", "2", "b"), False)],
)
def test_numbers_in_the_order_of_text_are_said(
    names: tuple[str, ...], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    given = source(*names)
    assert matched(given, len(names)) is given
    assert ("'10' is the model's output 2." in caplog.text) == warned
