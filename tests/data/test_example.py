"""Examples in place of data, as users give them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import updp
from updp.blocks.nested import ModelInputs

X = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((X, torch.tensor(10)), r"the shape \(\) in '1' beside 2 samples in '0': let the first"),
        ((X, torch.arange(5)[None]), r"the shape \(1, 5\) in '1' beside 2 samples in '0'"),
        ({"x": X, "more": {"t": torch.ones(3)}}, r"\(3,\) in 'more.t' beside 2 samples in 'x'"),
        (ModelInputs(([X[0]], X)), r"the shape \(2, 3, 8, 8\) in '1' beside 1 samples in '0'"),
        ({"t": torch.tensor(10), "x": X}, r"the shape \(\) in 't': let the first axis of each"),
        (torch.tensor(10), r"the shape \(\): let the first axis of each tensor be the batch"),
    ],
)
def test_tensors_of_an_example_have_one_place_for_each_sample(example: Any, message: str) -> None:
    with pytest.raises(updp.UserError, match=message):
        updp.inspect(nn.Linear(8, 8), example=example)
