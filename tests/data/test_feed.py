import itertools
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from updp import Recipe, UserError
from updp.data import Preprocess, Source, preprocess_for
from updp.data.feed import Feed
from updp.data.images import NO_LABEL, InMemory


def numbered(train: int = 60, test: int = 20, channels: int = 1) -> Source:
    """Images of which each is its own number, times a half where there are more than 255."""

    def images(first: int, count: int) -> InMemory:
        pixels = torch.arange(first, first + count, dtype=torch.uint8)
        pixels = pixels[:, None, None, None].expand(-1, channels, 8, 8).contiguous()
        return InMemory(pixels, [i % 4 for i in range(count)])

    return Source(images(0, train), images(train, test), tuple("abcd"), "f", (channels, 8, 8))


def make(source: Source, seed: int = 0, *, sets_aside: bool = True, **data: object) -> Feed:
    settings = {"held_out": 12, "calibration": 10, "batch_size": 7, "shift": 0, "flip": False}
    recipe = Recipe.model_validate({"data": {**settings, **data}})
    channels = source.image_size[0]
    # Pixels come out as the numbers that they are.
    preprocess = Preprocess((0.0,) * channels, (1 / 255,) * channels, source.image_size)
    cpu = torch.device("cpu")
    return Feed(source, preprocess, recipe.data, seed=seed, device=cpu, sets_aside=sets_aside)


def names(batches: list[Tensor]) -> list[int]:
    return torch.cat(batches)[:, 0, 0, 0].round().int().tolist()


def test_parts_are_disjoint_and_the_test_split_is_its_own() -> None:
    feed = make(numbered())
    held = names([images for images, _ in feed.held_out()])
    calibration = names(feed.calibration())
    steps = 3 * feed.steps  # short last batches are left out, other ones in every epoch
    training = {n for images, _ in islice(feed.training(0), steps) for n in names([images])}
    test = names([images for images, _ in feed.test()])
    assert (len(held), len(calibration)) == (12, 10)
    assert training | set(held) | set(calibration) == set(range(60))
    assert not training & {*held, *calibration}
    assert not set(held) & set(calibration)
    assert test == list(range(60, 80))


def test_labels_stay_with_their_images() -> None:
    feed = make(numbered())
    for images, labels in [*feed.held_out(), *islice(feed.training(0), 12)]:
        assert [n % 4 for n in names([images])] == labels.tolist()


def test_an_epoch_shows_every_image_once() -> None:
    feed = make(numbered(), batch_size=2)
    assert feed.steps == 19
    first, second = (
        names([images for images, _ in islice(feed.training(start), 19)]) for start in (0, 19)
    )
    assert len(set(first)) == len(set(second)) == 38
    assert first != second
    assert sorted(first) == sorted(second)


@pytest.mark.parametrize("start", [0, 1, 4, 5, 6, 11])
def test_training_goes_on_where_it_stopped(start: int) -> None:
    feed = make(numbered(), shift=None, flip=True)
    whole = list(islice(feed.training(0), 15))
    torch.manual_seed(start)  # no global state matters
    rest = list(islice(make(numbered(), shift=None, flip=True).training(start), 15 - start))
    for (a, x), (b, y) in zip(whole[start:], rest, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)


def test_augmentation_differs_from_step_to_step_and_is_for_training_alone() -> None:
    source = numbered()
    source.train.pixels[:] = torch.arange(64, dtype=torch.uint8).view(8, 8)
    feed = make(source, shift=2, flip=True)
    plain = source.train.pixels[0].float()
    views = torch.cat([images for images, _ in islice(feed.training(0), 10)])
    assert len({view.numpy().tobytes() for view in views}) > 30
    for images in [*feed.calibration(), *[images for images, _ in feed.held_out()]]:
        assert torch.allclose(images, plain.expand_as(images), atol=1e-4)


def test_split_and_batches_depend_on_the_seed() -> None:
    def order(seed: int) -> tuple[list[int], list[int]]:
        feed = make(numbered(), seed)
        batches = [images for images, _ in islice(feed.training(0), 5)]
        return names(batches), names(feed.calibration())

    assert order(3) == order(3)
    assert order(3)[0] != order(4)[0]
    assert order(3)[1] != order(4)[1]


def test_colour_images_are_mirrored_and_grey_ones_are_not() -> None:
    for channels, mirrored in ((1, False), (3, True)):
        source = numbered(channels=channels)
        source.train.pixels[:] = torch.arange(8, dtype=torch.uint8)
        feed = make(source, flip=None)
        views = torch.cat([images for images, _ in islice(feed.training(0), 5)])
        assert bool((views[:, 0, 0, 0] > 3).any()) == mirrored


def test_calibration_batches_never_leave_one_image_alone() -> None:
    feed = make(numbered(), calibration=17, batch_size=2)
    batches = feed.calibration()
    assert [len(b) for b in batches] == [6, 6, 5]
    assert [len(b) for b in make(numbered(), calibration=9, batch_size=2).calibration()] == [5, 4]
    assert len(set(names(batches))) == 17


@pytest.mark.parametrize("held_out", [25, 20])  # 20 is exactly half
def test_holding_out_half_of_what_is_trained_on_is_refused(held_out: int) -> None:
    with pytest.raises(UserError, match=f"data.held_out={held_out} and .* are half or"):
        make(numbered(), held_out=held_out)


def test_too_few_images_to_hold_any_out_are_refused_with_what_would_do() -> None:
    def automatic(train: int) -> Feed:
        return make(numbered(train=train, test=4), held_out=None, calibration=None, batch_size=2)

    said = "9 training images are too few to hold any out: give 10 or more, or set data.held_out=2"
    with pytest.raises(UserError, match=said):
        automatic(9)
    assert automatic(10).steps == 3
    assert make(numbered(train=9, test=4), held_out=2, calibration=2, batch_size=2).steps == 2


def test_all_images_may_be_held_out_where_nothing_is_trained() -> None:
    feed = make(numbered(), sets_aside=False, held_out=25, calibration=35)
    held = names([images for images, _ in feed.held_out()])
    assert sorted(held + names(feed.calibration())) == list(range(60))
    assert feed.steps == 0
    assert feed.with_held_out().steps == 8
    with pytest.raises(UserError, match="are more than the 60 training images: ask for fewer"):
        make(numbered(), sets_aside=False, held_out=26, calibration=35)


def test_what_no_stage_trains_on_is_for_calibration() -> None:
    feed = make(numbered(), sets_aside=False, held_out=None, calibration=None)
    held = names([images for images, _ in feed.held_out()])
    assert len(held) == 12  # a fifth
    assert sorted(held + names(feed.calibration())) == list(range(60))


def test_calibration_images_are_trained_on_without_those_of_scores() -> None:
    feed = make(numbered())
    held = {*names([images for images, _ in feed.held_out()])}
    other = feed.with_held_out(scored=False)
    batches = (images for images, _ in itertools.islice(other.training(0), other.steps))
    seen = names(list(batches))
    assert len(seen) == 48 // 7 * 7
    assert not held & {*seen}
    assert {*names(feed.calibration())} & {*seen}


@pytest.mark.parametrize(("share", "own"), [(0.5, 4), (0.01, 7), (0.99, 1)])
def test_a_share_of_each_training_batch_is_of_unlabelled_images(share: float, own: int) -> None:
    more = numbered(train=80, test=20)  # 80 to 99
    feed = make(numbered(), batch_size=8).with_unlabelled(more.test, share)
    assert feed.steps == len(range(60 - 22)) // own
    batches = [*islice(feed.training(0), 2 * feed.steps)]
    for images, labels in batches:
        found = names([images])
        assert [n >= 80 for n in found] == [False] * own + [True] * (8 - own)
        assert labels.tolist() == [NO_LABEL] * 8
    first = [n for images, _ in batches[: feed.steps] for n in names([images]) if n < 80]
    assert len({*first}) == len(first)  # an epoch is one of the data's own images
    again = [images for images, _ in islice(feed.training(3), 4)]
    assert names(again) == names([images for images, _ in batches[3:7]])


def test_float_images_of_a_loader_are_left_alone_unless_asked() -> None:
    source = numbered()
    ramp = torch.arange(64.0).view(1, 1, 8, 8)
    source.train.pixels = (source.train.pixels * 0 + 0).float() + ramp
    images, _ = next(make(source, shift=None, flip=None).training(0))
    assert torch.equal(images, ramp.expand_as(images))
    images, _ = next(make(source, shift=2, flip=None).training(0))
    assert not torch.equal(images, ramp.expand_as(images))


def test_the_digits_of_the_tiny_recipe() -> None:
    feed = tiny.make_feed(tiny.make_recipe())
    assert feed.steps == (1297 - 164) // 32
    assert sum(len(images) for images, _ in feed.test()) == 500


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_tensors_may_have_any_number_of_channels(channels: int) -> None:
    source = numbered(channels=channels)
    assert preprocess_for(nn.Identity(), source.image_size).mean == (0.5,) * channels
    feed = make(source, flip=None)
    images, _ = next(feed.training(0))
    assert images.shape == (7, channels, 8, 8)
    assert feed.augmentation == "images are not augmented"  # not mirrored: no photographs
    with pytest.raises(UserError, match=f"8-bit grey or colour .* {channels}x8x8 of uint8"):
        make(source, shift=None, flip=None, scale=[0.5, 1])


def test_the_augmentation_is_said() -> None:
    colour = numbered(channels=3)
    assert make(colour, shift=None, flip=None).augmentation == (
        "images are shifted by up to 1 pixels (data.shift) and mirrored at random (data.flip)"
    )
    said = make(colour, shift=None, flip=None, auto_augment="rand-m9-mstd0.5", hflip=0)
    assert "auto_augment rand-m9-mstd0.5" in said.augmentation
    assert "hflip 0" in said.augmentation
