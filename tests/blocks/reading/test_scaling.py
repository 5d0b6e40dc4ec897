"""Values for another number of samples than those that were seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from updp.blocks.reading.scaling import NotScalable, scaled


def given(samples: int) -> dict[str, Any]:
    """What a block may be given."""
    x = torch.arange(1, 1 + samples)
    return {
        "rows": (samples * 6, samples + 1, 8, 0.5),
        "size": torch.Size((samples, 6)),
        "flags": (True, None, "mean"),
        "tokens": torch.zeros(6, samples, 8),
        "windows": torch.zeros(samples * 4, 3),
        "pairs": torch.zeros(samples, 2, samples),
        "bias": torch.zeros(2, 6),
        "rotation": torch.zeros(6, dtype=torch.complex64),
        "mask": x[:, None] < 2,
        "places": torch.arange(6),
    }


def described(value: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v.shape) if isinstance(v, Tensor) else v for k, v in value.items()}


@pytest.mark.parametrize("samples", [1, 2, 3, 32])
@pytest.mark.parametrize("example", [1, 2, 5])
def test_what_grows_with_the_samples_does_so_in_a_line(example: int, samples: int) -> None:
    found = scaled(given(example), given(example + 1), samples - example)
    assert described(found) == described(given(samples))
    assert isinstance(found["size"], torch.Size)


def test_entries_of_tensors_are_repeated_and_copied() -> None:
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    larger = torch.cat([value, value[:1]])
    assert scaled(value, larger, 3).tolist() == [[1, 2], [3, 4], [1, 2], [3, 4], [1, 2]]
    assert scaled(value, larger, -1).tolist() == [[1, 2]]
    same = scaled(value, value, 3)
    assert same.equal(value)
    assert same is not value


@pytest.mark.parametrize(
    ("value", "larger"),
    [
        (4, 9),  # its square: one sample would have -1
        (False, True),
        (None, 3),
        (1, 1.5),
        ((1, 2), (1,)),
        (torch.zeros(2, 3), torch.zeros(3)),
        (torch.zeros(2, 0), torch.zeros(3, 2)),
        (torch.zeros(1, 3), torch.zeros(2, 3)),  # one sample would have none of it
        (torch.tensor([0, 6, 12]), torch.tensor([0, 6, 12, 18])),  # where each sample begins
        (torch.tensor(12), torch.tensor(18)),
    ],
)
def test_what_grows_otherwise_is_refused(value: Any, larger: Any) -> None:
    with pytest.raises(NotScalable, match="number of samples"):
        scaled(value, larger, -1)
