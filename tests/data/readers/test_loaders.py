from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from updp.data import Batches, from_loaders
from updp.errors import UserError

TEST = DataLoader(TensorDataset(torch.ones(3, 3, 8, 8), torch.tensor([0, 2, 1])))


class Noisy(Dataset[tuple[Tensor, int]]):
    """Augments at random, as training sets do."""

    targets = torch.tensor([1, 0, 1])

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(3, 8, 8), int(self.targets[index])


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
    torch.rand(1)
    assert from_loaders(DataLoader(Noisy()), TEST).fingerprint == first
    other = DataLoader(TensorDataset(torch.zeros(3, 3, 8, 8), torch.tensor([0, 2, 1])))
    assert from_loaders(DataLoader(Noisy()), other).fingerprint != first


def test_iterable_data_sets_are_refused() -> None:
    with pytest.raises(UserError, match=r"training loader's Stream is iterable: .* map-style"):
        from_loaders(DataLoader(Stream()), TEST)


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([("a path", 0)], r"gives \(str, int\): updp needs \(tensor \(C, H, W\), label\)"),
        ([(torch.zeros(8, 8), 0)], r"gives \(tensor \(8, 8\), int\)"),
        ([torch.zeros(2, 8, 8)], r"gives tensor \(2, 8, 8\)"),
        ([], "is empty"),
    ],
)
def test_items_that_are_not_image_and_label_are_refused(items: list, says: str) -> None:
    with pytest.raises(UserError, match=says):
        from_loaders(TEST, DataLoader(items))
