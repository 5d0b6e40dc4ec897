"""Loaders of other samples than labelled images."""

import math
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from updp import UserError
from updp.blocks.nested import ModelInputs
from updp.data import Batches, from_loaders
from updp.data.example import make_example, read_example, warn_of_idle_masks, write_example
from updp.tasks import TASKS, Task


class Items:
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def tagged(n: int, **more: Any) -> dict[str, Any]:
    ids = np.arange(n, n + 4)
    return {"input_ids": ids, "attention_mask": [1, 1, 1, 0], "labels": ids % 2, **more}


def opened(items: list[Any], task: str = "token-classification", **kw: Any) -> Any:
    splits = (Items(items), Items(items[:2]))
    train, test = (DataLoader(data, **kw) if kw else data for data in splits)
    return from_loaders(train, test, task=TASKS[task])


def test_a_dictionary_is_inputs_by_keyword_and_labels() -> None:
    source = opened([tagged(n) for n in range(5)])
    assert source.labelled
    x, labels = source.train.collate([source.train[3], source.train[0]])
    assert isinstance(x, ModelInputs)
    assert x.kwargs["input_ids"].tolist() == [[3, 4, 5, 6], [0, 1, 2, 3]]
    assert labels.tolist() == [[1, 0, 1, -100], [0, 1, 0, -100]]  # no label beyond the mask


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("options", [{}, {"batch_size": 2}])
def test_a_tuple_is_inputs_by_position(task: str, options: dict[str, Any]) -> None:
    items = [((torch.full((3,), float(n)), torch.arange(2) + n), n % 3) for n in range(6)]
    source = opened(items, task, **options)
    x, labels = source.train.collate([source.train[4], source.train[2]])
    assert isinstance(x, ModelInputs)
    assert [part.tolist() for part in x.args] == [[[4.0] * 3, [2.0] * 3], [[4, 5], [2, 3]]]
    assert labels.flatten().tolist() == [1, 2]


def test_a_collate_function_pads_and_is_used(tmp_path: Any) -> None:
    def padded(items: list[Any]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor([*item, *[0] * (5 - len(item))]) for item in items]
        return {"input_ids": torch.stack(ids)}

    source = opened([[1, 2], [3, 4, 5], [6]], "causal-lm", batch_size=2, collate_fn=padded)
    inputs, labels = source.train[1]
    assert inputs["input_ids"].tolist() == labels.tolist() == [3, 4, 5, 0, 0]


def test_examples_are_real_where_numbers_have_a_meaning(tmp_path: Any) -> None:
    source = opened([tagged(n) for n in range(5)])
    write_example(tmp_path, source.example)
    stored = read_example(tmp_path)
    assert stored.kwargs.keys() == source.example.kwargs.keys()
    assert all(torch.equal(x, stored.kwargs[n]) for n, x in source.example.kwargs.items())
    assert make_example(stored, (), 7).kwargs["input_ids"][6].tolist() == [1, 2, 3, 4]
    maps = TensorDataset(torch.randn(4, 3, 8, 8), torch.zeros(4, 8, 8).long())
    source = from_loaders(maps, maps, task=TASKS["segmentation"])
    assert source.example is None
    assert make_example(None, source.image_size, 2).shape == (2, 3, 8, 8)


def test_text_of_classes_is_classified() -> None:
    items = [{"input_ids": torch.arange(4) + n, "label": n % 3} for n in range(6)]
    source = from_loaders(Items(items), Items(items[:2]))
    assert (source.classes, source.train.targets) == (("0", "1", "2"), [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("label", [2, np.int64(2), torch.tensor(2)])
def test_a_label_of_another_name_is_named(label: Any, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(3, 4, 4)
    for items in ([{"image": x, "fine_label": label}] * 4, [{"image": x, "id": 7, "label": 1}] * 4):
        from_loaders(Items(items), Items(items))
    assert caplog.text.count("that is the label, rename it to label") == 1
    assert "loader have no label, and 'fine_label' is ignored" in caplog.text


def test_entries_beside_an_image_are_inputs_where_the_model_takes_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def items(**more: Any) -> Items:
        x = torch.randn(6, 3, 4, 4)
        return Items([{"image": x[n], "label": n % 3, "path": "a", **more} for n in range(6)])

    both = items(meta=torch.arange(5.0))
    for given in (both, DataLoader(both, batch_size=2)):  # type: ignore[arg-type]
        source = from_loaders(given, given, arguments=frozenset(["image", "meta"]))
        x, labels = source.train.collate([source.train[4], source.train[2]])
        assert isinstance(x, ModelInputs)
        assert {key: tuple(part.shape) for key, part in x.kwargs.items()} == {
            "image": (2, 3, 4, 4),
            "meta": (2, 5),
        }
        assert labels.tolist() == [1, 2]
    assert "ignored" not in caplog.text
    for more in ({"meta": torch.arange(5.0)}, {"id": 3}, {"meta": None}, {}):
        source = from_loaders(items(**more), items(), arguments=frozenset(["image"]))
        assert source.train[0][0].shape == (3, 4, 4)
    said = [record.message for record in caplog.records if "ignored" in record.message]
    assert said == [
        "items of the training loader hold 'meta' beside 'image': ignored, for the model's "
        "forward takes no argument of that name"
    ]
    with pytest.raises(UserError, match="and 'image', which is none: name all inputs as forward"):
        from_loaders(both, both, arguments=frozenset(["x", "meta"]))
    pixels = items(image=torch.zeros(3, 4, 4, dtype=torch.uint8), meta=1.0)
    with pytest.raises(UserError, match="hold 'image' as 8-bit pixels beside 'meta'"):
        from_loaders(pixels, pixels, arguments=frozenset(["image", "meta"]))


@pytest.mark.parametrize("key", ["image", "pixel_values"])
def test_a_dictionary_with_a_label_beside_it_is_inputs_by_keyword(key: str) -> None:
    items = Items([({key: torch.randn(3, 4, 4), "ids": torch.arange(2)}, n % 3) for n in range(6)])
    source = from_loaders(items, items)
    x, labels = source.train.collate([source.train[4], source.train[2]])
    assert isinstance(x, ModelInputs)
    assert ([*x.kwargs], labels.tolist()) == ([key, "ids"], [1, 2])


@pytest.mark.parametrize("task", ["segmentation", "regression"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_an_array_of_an_image_may_have_its_channels_last(task: str, kind: Any) -> None:
    x = np.arange(8 * 10 * 3).reshape(8, 10, 3).astype(kind)
    read = opened([(x, np.zeros((8, 10)))] * 3, task).train[0][0]
    if task == "regression" and kind == np.float32:  # may be anything
        assert read.shape == x.shape
    else:
        assert np.array_equal(read.numpy(), x.transpose(2, 0, 1))
    first = x.transpose(2, 0, 1)
    assert opened([(first, np.zeros((8, 10)))] * 3, task).train[0][0].shape == (3, 8, 10)


@pytest.mark.parametrize("task", ["classification", "causal-lm", "regression", "embedding"])
def test_a_flat_tuple_does_not_tell_which_are_labels(task: str) -> None:
    ids = torch.arange(12).reshape(3, 4)
    data = TensorDataset(ids, torch.ones_like(ids), ids[:, 0])
    if task == "embedding":  # which seldom has labels
        assert not from_loaders(data, data, task=TASKS[task]).labelled
        return
    with pytest.raises(UserError, match=r"^item 0 .* which does not tell .*\(\(a, b\), labels\)"):
        from_loaders(data, data, task=TASKS[task])


CLASSES = np.arange(16).reshape(4, 4) % 3


def palette() -> Image.Image:
    picture = Image.fromarray(CLASSES.astype(np.uint8)).convert("P")
    picture.putpalette([50, 60, 70, 80, 90, 99, 0, 0, 0])
    return picture


@pytest.mark.parametrize(
    ("picture", "wanted"),
    [
        (Image.fromarray(CLASSES.astype(np.uint8)), CLASSES),
        (Image.fromarray(CLASSES.astype(np.uint16)), CLASSES),
        (Image.fromarray(300 * CLASSES.astype(np.int32)), 300 * CLASSES),
        (Image.fromarray(CLASSES.astype(np.float32)), CLASSES),
        (palette(), CLASSES),
        (Image.fromarray(CLASSES == 2), CLASSES == 2),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_a_picture_of_labels_is_the_numbers_that_it_stores(picture: Any, wanted: Any) -> None:
    source = opened([(torch.randn(3, 4, 4), picture)] * 3, "segmentation")
    _, labels = source.train.collate([source.train[0], source.train[1]])
    assert labels.shape == (2, 1, 4, 4)
    assert np.array_equal(labels[0, 0].long().numpy(), wanted)


@pytest.mark.parametrize(
    ("task", "label", "says"),
    [
        ("segmentation", torch.full((4, 4), 2 / 255), r"its labels hold 0\.00784: labels are cla"),
        ("token-classification", [0.0, 1.5], r"its labels hold 1\.5"),
        ("regression", [0.0, math.nan], "its labels hold NaN"),
        ("multi-label", [math.inf, 1.0], "its labels hold NaN or infinite"),
        ("multi-label", [-1, 1], "its labels hold -1: labels are zeros and ones"),
        ("segmentation", torch.full((4, 4), math.nan), "its labels hold NaN"),
    ],
)
def test_labels_that_mean_nothing_are_named(task: str, label: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"^item 0 of the training loader: {says}"):
        opened([(torch.randn(3, 4, 4), label)] * 3, task)


def test_mappings_of_any_class_are_samples() -> None:
    """As tokenizers return them."""
    items = [(UserDict(input_ids=torch.arange(4) + n), n % 3) for n in range(6)]
    source = from_loaders(Items(items), Items(items[:2]))
    assert source.train.targets == [0, 1, 2, 0, 1, 2]
    x, _ = source.train.collate([source.train[3]])
    assert x.kwargs["input_ids"].tolist() == [[3, 4, 5, 6]]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"input_ids": torch.arange(3), "attention_mask": [1, 1, 1], "labels": 0}, "one length"),
        (tagged(0, input_ids=np.full(4, np.nan), attention_mask=np.ones(4)), "NaN or infinite"),
        ({"labels": 1}, "no tensor for the model"),
        ({"input_ids": np.arange(4), "attention_mask": [1, 1, 1, 1]}, "whether they have labels"),
    ],
)
def test_unlike_items_are_named(item: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^item 2 of the training loader .*{message}"):
        opened([tagged(0), tagged(1), item])


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_that_make_no_batch_are_named(workers: int) -> None:
    x = torch.randn(3, 4, 4)
    says = r"^item 2 of the training loader has labels of \(5, 4\), the first one of \(4, 4\)"
    with pytest.raises(UserError, match=says):
        opened([(x, torch.zeros(size, 4)) for size in (4, 4, 5)], "segmentation")

    class Own(Task):
        def collate(self, parts: list[Any]) -> Any:
            raise RuntimeError("of no use")

    items = Items([(x, 0)] * 3)
    source = from_loaders(items, items, task=Own())
    batches = Batches(source.train, None, 3, seed=0, shuffle=False, num_workers=workers)
    with pytest.raises(UserError, match=r"^items of the training loader make no .*of no use"):
        next(batches.epoch(0))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_what_is_none_in_all_items_stays_none(task: str) -> None:
    items = [{"input_ids": torch.arange(4), "mask": None, "labels": n} for n in range(4)]

    def joined(parts: list[Any]) -> dict[str, Any]:
        return {"input_ids": parts[0]["input_ids"][None], "mask": None, "labels": torch.tensor([1])}

    for options in ({}, {"batch_size": 2, "collate_fn": joined}):
        source = opened(items, task, **options)
        x, _ = source.train.collate([source.train[0], source.train[1]])
        assert isinstance(x, ModelInputs)
        assert x.kwargs["mask"] is None
        assert x.kwargs["input_ids"].shape == (2, 4)
    items[2]["mask"] = torch.ones(4)
    with pytest.raises(UserError, match=r"^item 2 of the training loader is .*the first one"):
        opened(items, task)


def test_a_language_model_s_labels_are_the_first_of_its_inputs() -> None:
    ids, mask = torch.arange(4), torch.ones(4)
    source = opened([((ids, mask),)] * 3, "causal-lm")
    assert torch.equal(source.train[0][1], ids)


def test_a_task_that_fails_on_an_item_is_named() -> None:
    class Own(Task):
        def split(self, item: Any) -> Any:
            return item["x"], item["y"]

    with pytest.raises(UserError, match=r"item 0 of the training loader is \{z: int\}: .*KeyError"):
        from_loaders(Items([{"z": 1}]), None, task=Own())


@pytest.mark.parametrize(
    ("name", "mask", "hides"),
    [
        ("attention_mask", torch.ones(2, 4, dtype=torch.int64), False),
        ("attention_mask", torch.ones(2, 4, dtype=torch.bool).tril(2), True),
        ("key_padding_mask", torch.zeros(2, 4, dtype=torch.bool), False),
        ("key_padding_mask", torch.eye(2, 4, dtype=torch.bool), True),
        ("mask", torch.ones(2, 4), True),
    ],
)
def test_masks_that_hide_nothing_are_warned_of(
    name: str, mask: Any, hides: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_idle_masks(ModelInputs((), {"input_ids": torch.ones(2, 4).long(), name: mask}))
    assert [f"`{name}` hides nothing" in r.getMessage() for r in caplog.records] == [True] * (
        not hides
    )
