import io
from itertools import islice

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from updp import Recipe
from updp.data import Augment, Preprocess, Source, from_loaders
from updp.data.feed import Feed
from updp.data.images import load_images
from updp.data.transforms import check_movable
from updp.errors import UserError
from updp.io.seeds import mix, random_state
from updp.recipe import DataSettings
from updp.tasks import find_task


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_move_is_a_shift_of_the_image(dtype: torch.dtype) -> None:
    image = torch.arange(1, 26).reshape(1, 5, 5).to(dtype)
    out = Augment(shift=1)(image.expand(200, 2, 5, 5), generator())
    assert out.dtype == dtype
    padded = torch.nn.functional.pad(image[0], (1, 1, 1, 1))
    moves = [padded[y : y + 5, x : x + 5] for y in range(3) for x in range(3)]
    seen = {next(i for i, m in enumerate(moves) if torch.equal(m, o)) for o in out[:, 0]}
    assert len(seen) == 9
    assert torch.equal(out[:, 0], out[:, 1])  # channels move together


def test_flip_mirrors_about_half() -> None:
    image = torch.arange(12).reshape(1, 3, 4)
    out = Augment(flip=True)(image.expand(100, 1, 3, 4), generator())
    flipped = (out == image.flip(-1)).flatten(1).all(1)
    assert ((out == image).flatten(1).all(1) | flipped).all()
    assert 30 < int(flipped.sum()) < 70


def test_without_shift_and_flip_images_are_untouched() -> None:
    batch = torch.rand(4, 3, 5, 6)
    assert torch.equal(Augment()(batch, generator()), batch)


def test_augmentation_draws_from_its_generator_alone() -> None:
    batch = torch.rand(16, 3, 8, 8)
    augment, state = Augment(shift=2, flip=True), torch.get_rng_state()
    first = augment(batch, generator(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(augment(batch, generator(1)), first)
    assert not torch.equal(augment(batch, generator(2)), first)


class Noise:
    """Stored pictures of noise, which are larger than the network's images."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def picture(self, index: int) -> Image.Image:
        noise = np.random.default_rng(index).integers(0, 256, (20, 30 + index % 5, 3), np.uint8)
        return Image.fromarray(noise).convert(self.mode)

    def read(self, index: int) -> bytes:
        file = io.BytesIO()
        self.picture(index).save(file, "png")
        return file.getvalue()

    def where(self, index: int) -> str:
        return f"image {index}"


def noise_feed(mode: str, **settings: object) -> Feed:
    channels = len(mode)
    images = load_images(Noise(mode), [i % 4 for i in range(30)], (channels, 16, 16))
    source = Source(images, images, tuple("abcd"), "f", images.size)
    preprocess = Preprocess((0.4, 0.5, 0.3)[:channels], (0.2, 0.3, 0.1)[:channels], images.size)
    data = {"held_out": 4, "calibration": 4, "batch_size": 8, **settings}
    recipe = Recipe.model_validate({"data": data})
    return Feed(source, preprocess, recipe.data, seed=3, device=torch.device("cpu"))


TRANSFORMS = [
    ({"scale": [0.3, 1], "hflip": 0.5}, {"scale": (0.3, 1)}),
    ({"auto_augment": "rand-m9-mstd0.5-inc1", "reprob": 0.9}, {"re_prob": 0.9}),
    ({"auto_augment": "augmix-m5-w2", "color_jitter": 0.2, "train_interpolation": "bicubic"}, {}),
    (
        {"color_jitter": [0.3, 0.2, 0.1, 0.05], "ratio": [1, 1], "reprob": 0.5, "remode": "const"},
        {},
    ),
]


def mixes_grey() -> bool:
    """Whether timm's AugMix takes grey images; that of 1.0.20 fails on them."""
    try:
        timm.data.create_transform(
            16, is_training=True, auto_augment="augmix-m5-w2", mean=(0.5,), std=(0.5,)
        )(Noise("L").picture(0))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("settings", "expected"), TRANSFORMS)
def test_training_images_are_those_of_timms_transform(
    mode: str, settings: dict[str, object], expected: dict[str, object]
) -> None:
    if mode == "L" and "augmix" in str(settings.get("auto_augment")) and not mixes_grey():
        pytest.skip("this version of timm cannot mix grey images")
    feed = noise_feed(mode, **settings)
    theirs = timm.data.create_transform(
        16,
        is_training=True,
        interpolation=settings.get("train_interpolation", "random"),
        mean=feed.preprocess.mean,
        std=feed.preprocess.std,
        **{
            "auto_augment": settings.get("auto_augment"),
            "color_jitter": settings.get("color_jitter", 0.4),
            "ratio": settings.get("ratio"),
            "re_prob": settings.get("reprob", 0),
            "re_mode": settings.get("remode", "pixel"),
            **expected,
        },
    )
    images = torch.cat([images for images, _ in islice(feed.training(0), 2)])
    order = np.random.Generator(np.random.PCG64([3, 0])).permutation(feed._train.indices)
    for image, index in zip(images, order[:16].tolist(), strict=True):
        with random_state(mix(3, 5, 0, index, 0)):
            assert torch.equal(image, theirs(Noise(mode).picture(index)))
    # Held-out images are as they are evaluated.
    (held, _), (again, _) = next(feed.held_out()), next(noise_feed(mode).held_out())
    assert torch.equal(held, again)


def test_timms_transforms_go_on_where_they_stopped_with_workers_too() -> None:
    settings = {"auto_augment": "rand-m9-mstd0.5", "reprob": 0.5, "aug_repeats": 2}
    whole = list(islice(noise_feed("RGB", **settings).training(0), 8))
    for start, workers in ((5, 0), (2, 2)):
        feed = noise_feed("RGB", workers=workers, **settings)
        rest = islice(feed.training(start), 8 - start)
        for (a, x), (b, y) in zip(whole[start:], rest, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("data.auto_augment=random-m9", r"timm has no such policy \(see its docs"),
        ("data.color_jitter=[0.1, 0.2]", "give one number, three or four"),
        ("data.aug_repeats=0", "it takes at least 1, not 0"),
    ],
)
def test_settings_that_timm_does_not_take_are_refused(setting: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Recipe().updated(setting)


@pytest.mark.parametrize(
    ("inputs", "form"),
    [
        (torch.randn(40, 3, 50), "3x50"),  # signals
        (torch.randint(0, 9, (40, 7)), "7"),  # tokens
    ],
)
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scale": [0.5, 1]}, "data.scale=[0.5, 1.0]"),
        ({"shift": 2}, "data.shift=2"),
        ({"flip": True}, "data.flip=true"),
    ],
)
def test_augmentation_is_refused_where_it_could_not_be_used(
    inputs: Tensor, form: str, settings: dict[str, object], said: str
) -> None:
    data = TensorDataset(inputs, torch.arange(40) % 4)
    source, recipe = from_loaders(data, data), Recipe.model_validate({"data": settings})
    with pytest.raises(UserError) as raised:
        Feed(source, None, recipe.data, seed=0, device=torch.device("cpu"))
    assert str(raised.value) == (
        f"{said} is for images, and a sample is {form}: leave it out, and augment in your data set"
    )


@pytest.mark.parametrize(
    ("settings", "said"), [({"shift": 2}, "data.shift=2"), ({"flip": True}, "data.flip=true")]
)
def test_shift_and_flip_are_refused_for_labels_of_other_tasks(
    settings: dict[str, object], said: str
) -> None:
    labels = torch.zeros(40, 8, 8, dtype=torch.int64)
    feed = plain_feed("segmentation", labels, color_jitter=None, shift=0, flip=False)
    assert feed.augmentation == "samples as the loader gives them"
    with pytest.raises(UserError, match=f"{said} is for images of classifiers: leave it out, and"):
        plain_feed("segmentation", labels, color_jitter=None, **settings)


def test_shift_and_timms_transforms_do_not_go_together() -> None:
    with pytest.raises(UserError, match="flip and auto_augment do not go together"):
        Recipe().updated("data.flip=true", "data.auto_augment=original")


def plain_feed(task: str, labels: Tensor, **settings: object) -> Feed:
    """Images of one grey each, 2 times their number, under timm's crops, which leave that grey."""
    pixels = torch.arange(0, 2 * len(labels), 2, dtype=torch.uint8)[:, None, None, None]
    images = TensorDataset(pixels.expand(-1, 3, 8, 8).contiguous(), labels)
    found = find_task(task)
    source = from_loaders(images, images, task=found)
    data = {"held_out": 4, "calibration": 4, "batch_size": 8, "color_jitter": 0, **settings}
    recipe = Recipe.model_validate({"data": data})
    preprocess = Preprocess((0.0,) * 3, (1 / 255,) * 3, (3, 8, 8))
    cpu = torch.device("cpu")
    return Feed(source, preprocess, recipe.data, seed=3, device=cpu, task=found)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("multi-label", (torch.arange(200).view(40, 5) % 7 > 3).float()),
        ("multi-label", (torch.arange(40) % 7 > 3).float()),  # of one output
        ("regression", torch.arange(80.0).view(40, 2)),
        ("regression", torch.arange(40.0)),
    ],
)
def test_labels_of_whole_pictures_stay_with_them_under_timms_transforms(
    task: str, labels: Tensor
) -> None:
    for images, found in islice(plain_feed(task, labels, scale=[0.5, 1]).training(0), 6):
        numbers = (images[:, 0, 4, 4] / 2).round().long()
        assert torch.equal(found, labels[numbers])


@pytest.mark.parametrize("task", ["segmentation", "regression", "embedding"])
def test_timms_transforms_are_refused_where_labels_would_have_to_move(task: str) -> None:
    maps = torch.randint(0, 4, (40, 8, 8))
    maps = maps if task == "segmentation" else maps.float()
    with pytest.raises(UserError, match=r"timm's .* do not move labels of 8x8 with .*: leave") as e:
        plain_feed(task, maps, scale=[0.5, 1])
    assert "\n" not in str(e.value)
    plain_feed(task, maps, color_jitter=None)


def test_timms_transforms_are_refused_for_lists_of_boxes() -> None:
    settings = DataSettings(scale=(0.5, 1))
    for boxes in ([torch.ones(4), torch.ones(4)], [(0, 0, 1, 1), (1, 1, 2, 2)]):
        with pytest.raises(UserError, match=r"do not move 2 boxes with them: leave data\.scale"):
            check_movable(boxes, settings)
    check_movable([0.5, 1.5], settings)
