import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from updp.data import Batches, Images, from_loaders
from updp.data.readers.loaders import Wrapped
from updp.errors import UserError

TEST = DataLoader(TensorDataset(torch.ones(3, 3, 8, 8), torch.tensor([0, 2, 1])))


class Noisy(Dataset[tuple[Tensor, int]]):
    """Augments at random, as training sets do."""

    targets = torch.tensor([1, 0, 1])

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        # timm's training transforms draw from all three.
        return torch.rand(3, 8, 8) * random.random() * np.random.rand(), int(self.targets[index])


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield torch.zeros(3, 8, 8), 0


def test_loaders_give_a_source_of_their_data_sets() -> None:
    source = from_loaders(DataLoader(Noisy(), batch_size=2), TEST)
    assert source.classes == ("0", "1", "2")
    assert source.image_size == (3, 8, 8)
    assert list(source.train.targets) == [1, 0, 1]
    assert list(source.test.targets) == [0, 2, 1]
    images, labels = next(Batches(source.test, None, 2, seed=0, shuffle=False).epoch(0))
    assert (images.dtype, labels.tolist()) == (torch.float32, [0, 2])


def test_fingerprint_ignores_random_augmentation_but_sees_data() -> None:
    state = torch.get_rng_state()
    first = from_loaders(DataLoader(Noisy()), TEST).fingerprint
    assert torch.equal(torch.get_rng_state(), state)
    for draw in (random.random, np.random.rand, lambda: torch.rand(1)):
        draw()
    assert from_loaders(DataLoader(Noisy()), TEST).fingerprint == first
    other = DataLoader(TensorDataset(torch.zeros(3, 3, 8, 8), torch.tensor([0, 2, 1])))
    assert from_loaders(DataLoader(Noisy()), other).fingerprint != first


def test_iterable_data_sets_are_refused() -> None:
    with pytest.raises(UserError, match=r"training loader's Stream is iterable: .* map-style"):
        from_loaders(DataLoader(Stream()), TEST)


@pytest.mark.parametrize("given", [3, {"train": TEST}, None])
def test_what_is_no_data_set_is_named_by_its_type(given: Any) -> None:
    kind = type(given).__name__
    with pytest.raises(UserError, match=f"the training images are of the type {kind}: give a loa"):
        from_loaders(given, TEST)


@pytest.mark.parametrize("length", [2.0, NotImplementedError("later")])
def test_a_data_set_that_does_not_know_its_length_is_named(length: Any) -> None:
    class Odd(Dataset):
        def __getitem__(self, index: int) -> Any:
            return TEST[index]

        def __len__(self) -> int:
            if isinstance(length, Exception):
                raise length
            return length

    with pytest.raises(
        UserError, match=r"test loader's Odd does not say how many .* mend its __le"
    ):
        from_loaders(TEST, Odd())


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([("a path", 0)], r"item 0 of the test loader is str: updp reads pairs"),
        ([(torch.zeros(2, 8, 8), 0, 1)], r"is \(tensor \(2, 8, 8\), int, int\)"),
        ([(torch.zeros(3, 8, 8), 0.5)], r"item 0 of the test loader has the label 0.5"),
        (
            [(torch.zeros(3, 8, 8), 0), (torch.zeros(3, 8, 9), 0)],
            "item 1 .* is float32 3x8x9, the first",
        ),
        ([(torch.zeros(3, 8, 8, dtype=torch.uint8), 0)], "gives floats and the test loader uint8"),
        ([], "is empty"),
    ],
)
def test_unusable_items_are_named(items: list, says: str) -> None:
    with pytest.raises(UserError, match=says):
        from_loaders(TEST, DataLoader(items))


def numbered(count: int) -> TensorDataset:
    """Image i is all i; labels go round three classes."""
    images = torch.arange(float(count))[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    return TensorDataset(images, torch.arange(count) % 3)


def values(images: Images) -> list[int]:
    return [int(images[index][0][0, 0, 0]) for index in range(len(images))]


@pytest.mark.parametrize(
    "loader",
    [
        lambda data, part: DataLoader(data, sampler=SubsetRandomSampler(part)),
        lambda data, part: DataLoader(data, sampler=list(part)),
        lambda data, part: DataLoader(data, batch_sampler=[[i] for i in reversed(part)]),
        lambda data, part: DataLoader(
            data, batch_sampler=BatchSampler(SubsetRandomSampler(part), 4, drop_last=True)
        ),
        lambda data, part: DataLoader(Subset(data, part), shuffle=True, batch_size=4),
        lambda data, part: Subset(data, part),
        lambda data, part: DataLoader(
            data, sampler=WeightedRandomSampler([float(i in part) for i in range(20)], 99)
        ),
    ],
)
def test_a_split_is_what_its_sampler_gives(
    loader: Callable[[Dataset, range], Any], caplog: pytest.LogCaptureFixture
) -> None:
    data = numbered(20)
    source = from_loaders(loader(data, range(15)), loader(data, range(15, 20)))
    assert values(source.train) == list(range(15))
    assert values(source.test) == list(range(15, 20))
    assert list(source.test.targets) == [i % 3 for i in range(15, 20)]
    assert "too" not in caplog.text


def test_what_a_sampler_says_of_its_order_is_not_used_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Endless(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return itertools.repeat(0)

    data = numbered(6)
    weighted = DataLoader(data, sampler=WeightedRandomSampler([1.0] * 6, 6))
    from_loaders(weighted, TEST)
    from_loaders(DataLoader(data, sampler=RandomSampler(data, num_samples=2)), TEST)
    from_loaders(DataLoader(data, sampler=[1, 1, 2]), TEST)
    said = [r.message for r in caplog.records if "samplers" in r.name]
    assert ["WeightedRandomSampler" in said[0], "draws 2 of 6" in said[1]] == [True, True]
    assert "repeats images: each of its 2" in said[2]
    with pytest.raises(UserError, match="training loader's Endless does not end"):
        from_loaders(DataLoader(data, sampler=Endless()), TEST)
    with pytest.raises(UserError, match="gives index 6, its data set has 6 items"):
        from_loaders(DataLoader(data, sampler=SubsetRandomSampler([6])), TEST)


def test_a_sampler_with_its_own_generator_is_left_as_it_was() -> None:
    class Shuffled(Sampler[int]):
        generator = torch.Generator().manual_seed(3)

        def __iter__(self) -> Iterator[int]:
            return iter(torch.randperm(3, generator=self.generator).tolist())

    state = Shuffled.generator.get_state()
    assert values(from_loaders(DataLoader(numbered(6), sampler=Shuffled()), TEST).train) == [
        0,
        1,
        2,
    ]
    assert torch.equal(Shuffled.generator.get_state(), state)


def test_items_go_through_the_collate_function() -> None:
    def joined(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = np.stack([np.asarray(item["picture"]) for item in items])
        return {
            "pixel_values": torch.from_numpy(pixels).permute(0, 3, 1, 2).float() + 0.5,
            "labels": torch.tensor([item["animal"] for item in items]),
        }

    pictures = [
        {"picture": Image.new("RGB", (8, 8), (grey, 0, 0)), "animal": grey % 3} for grey in range(5)
    ]
    source = from_loaders(DataLoader(pictures, collate_fn=joined), TEST)  # type: ignore[arg-type]
    assert source.train[4][0][:, 0, 0].tolist() == [4.5, 0.5, 0.5]
    assert list(source.train.targets) == [0, 1, 2, 0, 1]
    with pytest.raises(UserError, match="collate_fn's batch of item 0 of the training loader is"):
        from_loaders(DataLoader(pictures, collate_fn=len), TEST)  # type: ignore[arg-type]


def test_batch_size_and_workers_are_the_training_loaders() -> None:
    source = from_loaders(DataLoader(numbered(9), batch_size=4, num_workers=2), TEST)
    assert (source.batch_size, source.workers) == (4, 2)
    source = from_loaders(DataLoader(numbered(9)), TEST)
    assert (source.batch_size, source.workers) == (None, 0)
    assert from_loaders(numbered(9), numbered(9)).workers is None


def test_images_in_both_splits_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    data = numbered(40)
    from_loaders(DataLoader(data, sampler=range(30)), Subset(data, [3, 29, 30]))
    assert "2 of 3 test images are among the training images, too" in caplog.text
    caplog.clear()
    from_loaders(Subset(numbered(40), range(30)), Subset(numbered(40), range(25, 40)))
    assert "5 of 15 test images looked at are among 30 of the training images" in caplog.text


def test_labels_that_a_data_set_lists_are_checked_against_its_items() -> None:
    class Counted(Noisy):
        targets = torch.arange(500) % 2
        read = 0

        def __len__(self) -> int:
            return 500

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            Counted.read += 1
            return super().__getitem__(index)

    class Listed(Dataset):
        targets = [0] * 9

        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.zeros(3, 8, 8), 1

    assert list(from_loaders(Listed(), TEST).train.targets) == [1] * 9
    images = Wrapped(Counted(), "training")
    assert list(images.targets) == [0, 1] * 250
    assert Counted.read < 100


def test_a_generator_that_nobody_can_seed_does_not_change_the_fingerprint() -> None:
    class Own(Noisy):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            noise = np.random.default_rng().random((3, 8, 8), np.float32)
            return torch.from_numpy(noise), 1

    prints = {from_loaders(DataLoader(Own()), TEST).fingerprint for _ in range(2)}
    assert len(prints) == 1


def test_items_may_have_no_labels() -> None:
    pixels = torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8)
    alone: list[Any] = [TensorDataset(pixels), [*pixels], [{"image": x} for x in pixels]]
    alone += [[(x, None) for x in pixels], [x.permute(1, 2, 0).numpy() for x in pixels]]
    labelled = TensorDataset(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.arange(3))
    for given in alone:
        source = from_loaders(given, labelled)
        assert not source.labelled
        assert source.test.labelled
        assert source.classes == ("0", "1", "2")
        assert torch.equal(source.train[5][0], pixels[5])
    for mixed in ([(pixels[0], 1), pixels[1]], [pixels[0], (pixels[1], 1)]):
        with pytest.raises(UserError, match=r"item 1.*: some items have labels and others none"):
            from_loaders(mixed, labelled).train[1]


def test_any_image_may_change_the_fingerprint_and_not_the_first_ones_alone() -> None:
    images = torch.randn(200, 3, 8, 8)
    changed = images.clone()
    changed[100:] *= -1
    labels = torch.arange(200) % 2
    prints = {
        from_loaders(TensorDataset(some, labels), TEST).fingerprint for some in (images, changed)
    }
    assert len(prints) == 2
