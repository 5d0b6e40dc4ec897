import pytest
import torch

from updp.data import hold_out
from updp.errors import UserError


def test_classes_keep_their_shares() -> None:
    labels = [0] * 60 + [1] * 30 + [2] * 10
    train, held = hold_out(100, labels, 30, seed=0)
    assert torch.bincount(torch.tensor(labels)[held]).tolist() == [18, 9, 3]
    assert torch.equal(torch.cat([train, held]).sort().values, torch.arange(100))


@pytest.mark.parametrize("count", [0, 1, 7, 33, 49, 80, 100])
def test_exactly_as_many_as_asked_are_held_out(count: int) -> None:
    train, held = hold_out(100, [i % 7 for i in range(100)], count, seed=3)
    assert (len(train), len(held)) == (100 - count, count)


def test_the_split_depends_on_the_seed() -> None:
    labels = [i % 10 for i in range(1000)]
    first, again, other = (hold_out(1000, labels, 100, seed=s)[1] for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first.sort().values, other.sort().values)


def test_a_prefix_of_the_held_out_is_mixed() -> None:
    _, held = hold_out(1000, [0] * 500 + [1] * 500, 400, seed=0)
    assert 10 < int((held[:50] < 500).sum()) < 40


@pytest.mark.parametrize("count", [-1, 11])
def test_holding_out_more_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"cannot hold out {count} of 10 images"):
        hold_out(10, [0] * 10, count, seed=0)
