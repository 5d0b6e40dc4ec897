import pytest
import torch
from torch import Tensor

from updp.data import Batches
from updp.data.images import InMemory
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
