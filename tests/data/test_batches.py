import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from updp.data import Batches, Images
from updp.data.images import InMemory
from updp.data.order import Groups
from updp.errors import UserError


class Counting(InMemory):
    """Image i holds the value i; remembers what was asked for."""

    def __init__(self, count: int) -> None:
        pixels = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1)
        super().__init__(pixels, list(range(count)))
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.asked.append(index)
        return super().__getitem__(index)


def labels(batches: Batches, epoch: int, start: int = 0) -> list[list[int]]:
    return [y.tolist() for _, y in batches.epoch(epoch, start)]


def flat(lists: list[list[int]]) -> list[int]:
    return [item for one in lists for item in one]


def test_resuming_gives_the_tail_and_decodes_nothing_else() -> None:
    whole = labels(Batches(Counting(100), None, 8, seed=1, shuffle=True), 3)
    data = Counting(100)
    assert labels(Batches(data, None, 8, seed=1, shuffle=True), 3, start=5) == whole[5:]
    assert data.asked == flat(whole[5:])
    assert labels(Batches(data, None, 8, seed=1, shuffle=True), 3, start=len(whole)) == []


def test_images_stored_together_are_trained_on_together() -> None:
    """Each window of two groups is two whole batches here; windows differ from epoch to epoch."""
    data, groups = Counting(100), Groups(np.arange(0, 100, 10), 2)
    chosen = torch.arange(0, 100, 2)  # the others are held out

    def order(epoch: int, start: int = 0) -> list[list[int]]:
        return labels(Batches(data, chosen, 5, seed=1, shuffle=True), epoch, start)

    def windows(batches: list[list[int]]) -> list[set[int]]:
        pairs = zip(batches[::2], batches[1::2], strict=True)
        return [{image // 10 for image in one + other} for one, other in pairs]

    assert {len(window) for window in windows(order(0))} != {2}
    data.groups = groups
    first, second = order(0), order(1)
    for each in (first, second):
        assert sorted(flat(each)) == chosen.tolist()
        assert [len(window) for window in windows(each)] == [2] * 5
    assert windows(first) != windows(second)
    assert any(len({image // 10 for image in batch}) == 2 for batch in first)
    assert order(1, start=3) == second[3:]


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_state_is_left_alone(workers: int) -> None:
    batches = Batches(Counting(20), None, 8, seed=1, shuffle=True, num_workers=workers)
    state = torch.get_rng_state()
    inline = Batches(Counting(20), None, 8, seed=1, shuffle=True)
    assert labels(batches, 0) == labels(inline, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_order_depends_on_seed_and_epoch() -> None:
    data = Counting(50)
    orders = [
        labels(Batches(data, None, 10, seed=seed, shuffle=True), epoch)
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({str(order) for order in orders}) == 4
    assert all(sorted(flat(order)) == list(range(50)) for order in orders)


def test_batches_are_images_and_labels_of_the_indices() -> None:
    chosen = torch.tensor([7, 3, 9])
    batches = Batches(Counting(10), chosen, 2, seed=0, shuffle=False)
    (images, first), (_, last) = batches.epoch(0)
    assert (images.shape, images.dtype) == ((2, 1, 1, 1), torch.uint8)
    assert images.flatten().tolist() == first.tolist() == [7, 3]
    assert last.tolist() == [9]


@pytest.mark.parametrize(
    ("count", "shuffle", "sizes"),
    [(10, False, [4, 4, 2]), (10, True, [4, 4]), (3, True, [3]), (8, True, [4, 4])],
)
def test_a_short_last_batch_is_dropped_if_shuffled(
    count: int, shuffle: bool, sizes: list[int]
) -> None:
    batches = Batches(Counting(count), None, 4, seed=0, shuffle=shuffle)
    assert [len(batch) for batch in labels(batches, 0)] == sizes
    assert len(batches) == len(sizes)


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(UserError, match="batch size 0"):
        Batches(Counting(4), None, 0, seed=0, shuffle=False)
    with pytest.raises(UserError, match="no images"):
        Batches(Counting(4), torch.tensor([], dtype=torch.long), 4, seed=0, shuffle=False)


class Drawing(Images):
    """Image i is its number and what a user's transform drew: by `random`, NumPy and torch."""

    def __init__(self, count: int = 21) -> None:
        self.targets, self.size = list(range(count)), (1, 2, 2)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        drawn = [index, random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor(drawn, dtype=torch.float64).view(self.size), index


def drawn(start: int, stop: int, *, workers: int = 0, repeats: int = 1, seed: int = 1) -> Tensor:
    """Steps `start` to `stop` of endless training, (images, 4)."""
    batches = Batches(
        Drawing(), None, 4, seed=seed, shuffle=True, num_workers=workers, repeats=repeats
    )
    images = [images for images, _ in islice(batches.endless(start), stop - start)]
    return torch.cat(images).flatten(1)


def test_what_images_draw_is_the_same_with_workers_and_from_any_step() -> None:
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    whole = drawn(0, 12)
    for start, workers in ((0, 2), (3, 0), (5, 2), (11, 0)):
        torch.manual_seed(start), random.seed(start), np.random.seed(start)
        assert torch.equal(drawn(start, 12, workers=workers), whole[4 * start :])
    torch.set_rng_state(state[2]), random.setstate(state[0])
    drawn(0, 2)
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[2])
    draws = whole[:, 1:].flatten().tolist()
    assert len(set(draws)) == len(draws)  # another view in every epoch
    assert not set(draws) & set(drawn(0, 12, seed=2)[:, 1:].flatten().tolist())


def test_what_an_image_draws_does_not_depend_on_the_others() -> None:
    alone = Batches(Drawing(), torch.tensor([7]), 1, seed=1, shuffle=False)
    among = Batches(Drawing(), None, 21, seed=1, shuffle=False)
    for epoch in (0, 3):
        (one, _), (all_of_them, _) = next(alone.epoch(epoch)), next(among.epoch(epoch))
        assert torch.equal(one[0], all_of_them[7])


def test_repeated_augmentation_shows_fewer_images_several_times() -> None:
    views = drawn(0, 5, repeats=3)
    assert len(views) == 20
    for first in range(0, 18, 3):
        same = views[first : first + 3]
        assert len(set(same[:, 0].tolist())) == 1
        assert len(set(same[:, 1].tolist())) == 3
    assert len(set(views[:, 0].tolist())) == 7
    assert torch.equal(drawn(2, 5, repeats=3, workers=2), views[8:])


class Broken(Drawing):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise UserError(f"image 'number {index}' is broken")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_line_from_a_worker_too(workers: int) -> None:
    batches = Batches(Broken(), None, 4, seed=1, shuffle=False, num_workers=workers)
    with pytest.raises(UserError) as error:
        next(batches.epoch(0))
    assert str(error.value) == "image 'number 0' is broken"
