from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests import tiny
from tests.tiny import open_inputs
from updp import UserError
from updp.blocks.nested import ModelInputs
from updp.data import Images, Source
from updp.io.progress import Silent
from updp.models import load_model
from updp.recipe import DataSettings, Recipe
from updp.stages.context import RunInputs


def data(classes: int = 10, count: int = 120, first: int = 0) -> TensorDataset:
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(first))
    return TensorDataset(images, torch.arange(count) % classes)


def opened(model: Any, given: Any, **settings: Any) -> RunInputs:
    defaults = {"held_out": 20, "calibration": 20}
    return open_inputs(model, given, tiny.make_recipe(data={**defaults, **settings}))


def test_the_number_of_classes_is_the_models(tiny_model: str) -> None:
    module = load_model(tiny_model)
    inputs = opened(module, (data(classes=3), data(classes=4, first=1)))
    assert inputs.classes == tuple(map(str, range(10)))
    assert inputs.feed.classes == 10
    with pytest.raises(UserError, match="the data has label 10 and the model 10 classes: labels"):
        opened(module, (data(classes=11), data(first=1)))


def test_weights_say_how_many_classes_a_named_model_has(tmp_path: Path) -> None:
    for split, grey in (("train", 0), ("test", 100)):
        for name in ("3", "11"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(20):
                Image.new("RGB", (32, 32), (grey, number, int(name))).save(folder / f"{number}.png")
    save_file(load_model("timm/resnet10t", num_classes=12).state_dict(), tmp_path / "w.safetensors")
    inputs = open_inputs(
        "timm/resnet10t",
        str(tmp_path / "data"),
        tiny.make_recipe(data={"held_out": 8, "calibration": 8, "input_size": (3, 32, 32)}),
        weights=tmp_path / "w.safetensors",
    )
    assert len(inputs.classes) == 12
    assert {int(y) for _, labels in inputs.feed.test() for y in labels} == {3, 11}


def test_the_training_loaders_settings_are_used_unless_the_recipe_has_its_own(
    tiny_model: str,
) -> None:
    loaders = DataLoader(data(), batch_size=8, num_workers=1), DataLoader(data(first=1))
    settings = opened(tiny_model, loaders).recipe.data
    assert (settings.batch_size, settings.workers) == (8, 1)
    settings = opened(tiny_model, loaders, batch_size=16).recipe.data
    assert (settings.batch_size, settings.workers) == (16, 1)
    default = Recipe().data.batch_size  # said, though it is the default
    recipe = tiny.make_recipe(data={"held_out": 20, "calibration": 20})
    unsaid = recipe.model_copy(update={"data": DataSettings(held_out=20, calibration=20)})
    for one, size in ((unsaid, 8), (unsaid.updated(f"data.batch_size={default}"), default)):
        assert open_inputs(tiny_model, loaders, one).recipe.data.batch_size == size


@pytest.mark.parametrize("given", [3, (data(),)])
def test_data_of_another_form_says_what_to_give(tiny_model: str, given: Any) -> None:
    with pytest.raises(UserError, match="give a name, a folder, a loader or data set, or a pair"):
        opened(tiny_model, given)


def test_a_loader_alone_is_split_and_may_have_a_test_split_beside_it(
    tiny_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    def numbers(split: Images) -> set[int]:
        return {int(1e6 * image.sum()) for image, _ in split}

    recipe = tiny.make_recipe(data={"held_out": 20, "calibration": 20})
    seen: list[Source] = []

    def look(model: object, source: Source) -> None:
        seen.append(source)

    open_inputs(tiny_model, DataLoader(data()), recipe, check=look)
    assert "12 of the training loader's 120 images are split off for it" in caplog.text
    whole = {int(1e6 * image.sum()) for image, _ in data()}
    assert numbers(seen[0].train) | numbers(seen[0].test) == whole
    assert (len(seen[0].train), len(seen[0].test)) == (108, 12)
    open_inputs(tiny_model, data(), recipe, test=data(first=1), check=look)
    open_inputs(tiny_model, (data(), data(first=1)), recipe, check=look)
    assert seen[1].fingerprint == seen[2].fingerprint != seen[0].fingerprint
    for given, test in ((data(), "digits"), ("digits", data()), ((data(), data()), data())):
        with pytest.raises(UserError, match=r"give (two paths|one of them)"):
            open_inputs(tiny_model, given, recipe, test=test)


def test_a_model_that_guesses_is_warned_of(
    tiny_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Knowing(torch.nn.Module):
        """Reads the label, which the data below has in its first pixel."""

        def __init__(self, shift: int) -> None:
            super().__init__()
            self.shift = torch.nn.Parameter(torch.tensor(float(shift)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            classes = torch.arange(10)
            return -((x[:, 0, 0, :1] + self.shift) % 10 - classes).abs()

    splits = data(), data(first=1)
    for split in splits:
        split.tensors[0][:, 0, 0, 0] = split.tensors[1].float()
    opened(Knowing(0), list(splits))
    assert "as a guess would be" not in caplog.text
    opened(Knowing(1), list(splits))
    assert "right on 0 of 20 held-out images, as a guess would be" in caplog.text


def test_images_without_labels_say_what_is_missing(tiny_model: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for number in range(60):
            Image.new("L", (8, 8), number).save(tmp_path / split / f"{number}.png")
    with pytest.raises(UserError, match=r"has no labels, and supernet.epochs=0.3 trains on them"):
        opened(tiny_model, str(tmp_path))


def test_an_input_beside_the_image_reaches_a_classifier() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(5, 3)

        def forward(self, image: torch.Tensor, meta: torch.Tensor | None = None) -> torch.Tensor:
            mean = image.mean((1, 2, 3))[:, None]
            found: torch.Tensor = self.layer(mean + (0 if meta is None else meta))
            return found

    x, meta = torch.rand(120, 3, 8, 8), torch.randn(120, 5)
    items: Any = [{"image": x[n], "meta": meta[n], "label": n % 3} for n in range(120)]
    inputs = opened(Both(), (DataLoader(items), DataLoader(items[:20])))
    batch, _ = next(inputs.feed.test())
    assert isinstance(batch, ModelInputs)
    assert torch.equal(batch.kwargs["meta"], meta[: len(batch)])


@pytest.mark.parametrize("white", [1, 255])
def test_masks_of_black_and_white_are_warned_of(
    white: int, caplog: pytest.LogCaptureFixture
) -> None:
    masks = white * (torch.rand(120, 8, 8) > 0.5).long()
    split = TensorDataset(torch.randn(120, 3, 8, 8), masks)
    recipe = tiny.make_recipe(data={"held_out": 20, "calibration": 20})
    open_inputs(torch.nn.Conv2d(3, 1, 1), (split, split), recipe, task="segmentation")
    said = "masks of 20 held-out images hold 0 and 255 alone, and 255 is ignored" in caplog.text
    assert said == (white == 255)


@pytest.mark.parametrize(
    ("split", "value", "says"),
    [
        ("training", 9, "its labels hold 9: the model's 4 classes are 0 to 3, and 255 is ignored"),
        ("training", -1, "its labels hold -1: -1 for what is ignored must be 255"),
        ("test", 4, "its labels hold 4: the model's 4 classes"),
    ],
)
def test_masks_of_classes_that_the_model_lacks_are_refused(
    split: str, value: int, says: str
) -> None:
    def data(name: str) -> TensorDataset:
        masks = torch.randint(0, 4, (120, 8, 8))
        masks[0, 0, :2] = 255
        masks[17, 0, 0] = value if name == split else 0
        return TensorDataset(torch.randn(120, 3, 8, 8), masks)

    recipe = tiny.make_recipe(data={"held_out": 20, "calibration": 20})
    with pytest.raises(UserError, match=f"^item 17 of the {split} loader: {says}"):
        open_inputs(
            torch.nn.Conv2d(3, 4, 1), (data("training"), data("test")), recipe, task="segmentation"
        )


class Tokens(torch.nn.Module):
    """A class, or the next token, of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(9, 9)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.embed(input_ids)
        return found


def token_data(value: int, *, masked: bool) -> Any:
    """Items of six tokens and their labels, of which one of item 17 is `value`."""
    items = [
        {
            "input_ids": torch.randint(0, 9, (6,)),
            "attention_mask": torch.ones(6, dtype=torch.int64),
            "labels": torch.randint(0, 9, (6,)),
        }
        for _ in range(120)
    ]
    items[0]["labels"][2] = -100
    items[17]["labels"][4] = value
    items[17]["attention_mask"][4] = not masked
    return items


@pytest.mark.parametrize("task", ["token-classification", "causal-lm"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (9, "its labels hold 9: the model's 9 classes are 0 to 8, and -100 is ignored"),
        (-1, "its labels hold -1: -1 for what is ignored must be -100"),
    ],
)
def test_labels_of_tokens_that_the_model_lacks_are_refused(
    task: str, value: int, says: str
) -> None:
    torch.manual_seed(0)
    train, test = token_data(value, masked=False), token_data(0, masked=False)
    recipe = tiny.make_recipe(data={"held_out": 20, "calibration": 20})
    with pytest.raises(UserError, match=f"^item 17 of the training loader: {says}"):
        open_inputs(Tokens(), (DataLoader(train), DataLoader(test)), recipe, task=task)


@pytest.mark.parametrize("task", ["token-classification", "causal-lm"])
def test_labels_of_tokens_outside_of_the_mask_may_be_any(task: str) -> None:
    torch.manual_seed(0)
    data = token_data(-1, masked=True)
    recipe = tiny.make_recipe(data={"held_out": 20, "calibration": 20})
    inputs = open_inputs(Tokens(), (DataLoader(data), DataLoader(data)), recipe, task=task)
    assert -1 not in torch.cat([labels.flatten() for _, labels in inputs.feed.test()])


def test_masks_that_were_not_looked_at_are_checked_as_they_are_read() -> None:
    masks = torch.randint(0, 4, (600, 8, 8))
    split = TensorDataset(torch.randn(600, 3, 8, 8), masks)
    recipe = tiny.make_recipe(data={"held_out": 20, "calibration": 20})
    inputs = open_inputs(torch.nn.Conv2d(3, 4, 1), (split, split), recipe, task="segmentation")
    masks[599, 0, 0] = 9
    with pytest.raises(UserError, match=r"^item 599 of the test loader: its labels hold 9"):
        list(inputs.feed.test())


class Words(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)

    def forward(self, input_ids: torch.Tensor, mask: Any = None) -> torch.Tensor:
        found: torch.Tensor = self.head(self.embed(input_ids))
        return found


@pytest.mark.parametrize("form", ["tensor", "dictionary"])
def test_labels_of_a_language_model_that_are_shifted_already_are_refused(form: str) -> None:
    text = torch.randint(0, 9, (120, 8), generator=torch.Generator().manual_seed(0))

    def open_text(ids: torch.Tensor, labels: torch.Tensor) -> None:
        items: Any = list(zip(ids, labels, strict=True))
        if form == "dictionary":
            items = [{"mask": ids[0] * 0 + 1, "input_ids": x, "labels": y} for x, y in items]
        recipe = tiny.make_recipe(data={"held_out": 20, "calibration": 20})
        loaders = DataLoader(items), DataLoader(items[:20])
        open_inputs(Words(), loaders, recipe, task="causal-lm")

    ids, following = text[:, :-1], text[:, 1:].clone()
    following[:, -2:] = -100  # padding
    with pytest.raises(UserError, match=r"next tokens of 100% .*: give the ids"):
        open_text(ids, following)
    with pytest.raises(UserError, match="zeros and ones alone, as a mask is: give a mask as an"):
        open_text(ids, torch.ones_like(ids))
    open_text(ids, ids)
    open_text(torch.ones_like(ids), torch.ones_like(ids))  # where both are the same


@pytest.mark.parametrize(
    ("kind", "form"), [("signals", "3x20"), ("tokens", "20"), ("dictionary", "no single tensor")]
)
@pytest.mark.parametrize(("stage", "setting"), [("supernet", "cutmix"), ("subnet", "mixup")])
def test_mixing_is_refused_where_inputs_are_no_images(
    kind: str, form: str, stage: str, setting: str
) -> None:
    labels = torch.arange(120) % 4
    if kind == "signals":
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 4))
        items: Any = TensorDataset(torch.randn(120, 3, 20), labels)
    else:
        embed = torch.nn.Embedding(9, 4)
        model = torch.nn.Sequential(embed, torch.nn.Flatten(), torch.nn.Linear(80, 4))
        items = TensorDataset(torch.randint(0, 9, (120, 20)), labels)
    if kind == "dictionary":
        items = DataLoader([({"input": ids}, label) for ids, label in items])
    recipe = tiny.make_recipe(data={"held_out": 20, "calibration": 20})
    with pytest.raises(UserError) as raised:
        open_inputs(model, (items, items), recipe.updated(f"{stage}.{setting}=0.2"))
    assert str(raised.value) == (
        f"{stage}.{setting}=0.2 is for images, and a sample is {form}: leave it out"
    )
    open_inputs(model, (items, items), recipe)


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_normalisation_that_nobody_stated_is_said(tiny_model: str) -> None:
    def said(model: Any, given: Any, **settings: Any) -> list[str]:
        recipe = tiny.make_recipe(data={"held_out": 20, "calibration": 20, **settings})
        told = Told()
        open_inputs(model, given, recipe, progress=told)
        return told.lines

    (line,) = said(tiny_model, "digits")
    assert line.startswith("images: mean 0.5 and std 0.5, for the model does not say")
    assert said(tiny_model, "digits", mean=(0.3,), std=(0.4,)) == []
    assert said("zoo/digits-resnet", "digits") == []
    loaders = (data(), data(first=1))  # of floats, which a loader has normalised
    assert said(load_model(tiny_model), loaders) == []


def test_a_model_by_name_without_weights_is_said_to_be_untrained(
    tiny_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    open_inputs(
        "timm/test_resnet", "digits", tiny.make_recipe().updated("data.input_size=[3,32,32]")
    )
    assert "timm/test_resnet is untrained, as nothing is downloaded: give --weights" in caplog.text
    caplog.clear()
    open_inputs(tiny_model, "digits", tiny.make_recipe())
    assert "untrained" not in caplog.text


def items(count: int) -> list[tuple[Tensor, int]]:
    return [(torch.randn(1, 8, 8), n % 10) for n in range(count)]


@pytest.mark.parametrize("pair", [tuple, list])
def test_lists_of_items_are_data_sets(pair: Callable[..., Any], tiny_model: str) -> None:
    train, test = items(90), items(30)
    recipe = tiny.make_recipe().updated("data.calibration=20", "data.held_out=10")
    for given, size in ((pair([train, test]), 30), (train, 9)):
        source = open_inputs(tiny_model, given, recipe).feed
        labels = torch.cat([labels for _, labels in source.test()])
        assert len(labels) == size
    found, _ = next(open_inputs(tiny_model, pair([train, test]), recipe).feed.test())
    assert torch.equal(found[0], test[0][0])


def test_images_and_their_labels_are_no_pair_of_splits(tiny_model: str) -> None:
    images, labels = torch.randn(60, 1, 8, 8), torch.arange(60) % 10
    arrays = [(images, labels), (images.numpy(), labels.numpy())]
    given = [[*images], [image.numpy() for image in images], images, images.numpy()]
    lists = [(several, own) for several in given for own in (labels.tolist(), tuple(labels))]
    lists += [([*images], labels), ([*images], [*labels.numpy()])]
    told = {r"TensorDataset\(images, labels\)": arrays, r"list\(zip\(images, labels\)\)": lists}
    for words, pairs in told.items():
        for pair in pairs:
            with pytest.raises(UserError, match=rf"data is a pair of arrays or lists.*{words}"):
                open_inputs(tiny_model, pair, tiny.make_recipe())


def test_images_joined_with_labels_as_advised_are_a_data_set(tiny_model: str) -> None:
    labels = torch.arange(60) % 10
    images = labels.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).float()
    recipe = tiny.make_recipe().updated("data.calibration=10", "data.held_out=10")
    for joined in (
        TensorDataset(images, labels),
        list(zip(images, labels, strict=True)),
        list(zip([*images], labels.tolist(), strict=True)),
    ):
        given, own = next(open_inputs(tiny_model, joined, recipe).feed.test())
        assert torch.equal(given[:, 0, 0, 0], own.float())


def test_a_loss_beside_the_output_is_left_aside(tiny_model: str) -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = load_model(tiny_model)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.net(x)
            return y.square().mean(), y

    recipe = Recipe.load("fit-only").updated(
        "data.held_out=20", "data.calibration=20", "budget.blocks=1"
    )
    inputs = open_inputs(WithLoss(), (data(), data(first=1)), recipe)
    images, _ = next(inputs.feed.test())
    assert inputs.feed.task.run(inputs.baseline, images).shape == (len(images), 10)
