"""Models with several inputs as files: by position, with dynamic lengths of sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from tests.extras import needs
from updp.blocks.nested import ModelInputs, call
from updp.deploy.export import FORMATS
from updp.deploy.export.parity import logits, resized
from updp.run.plain import PlainModel, by_position, input_names
from updp.tasks import TASKS


class Tokens(nn.Module):
    """A class for each token, from whole numbers, a mask and a vector; the output is a record."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.qkv = nn.Embedding(9, 4), nn.Linear(4, 12)
        self.bias, self.head = nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, ids: Tensor, more: dict[str, Tensor], w: Any = None) -> dict[str, Tensor]:
        x = self.embedding(ids) + self.bias(more["vector"])[:, None]
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        mask = more["mask"][:, None, None, :].bool()
        x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0]
        return {"features": x, "logits": self.head(x * (1 if w is None else w[:, None, None]))}


def inputs(batch: int, length: int) -> ModelInputs:
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(0, 9, (batch, length), generator=generator)
    mask = (torch.arange(length) < length - 1).long().expand(batch, -1)
    vector = torch.randn(batch, 3, generator=generator)
    scale = torch.rand(batch, generator=generator)
    return ModelInputs((ids, {"vector": vector, "mask": mask}), {"w": scale})


class Made(NamedTuple):
    model: PlainModel
    names: tuple[str, ...]


@pytest.fixture(scope="module")
def made() -> Made:
    torch.manual_seed(0)
    model = Tokens().eval()
    names = input_names(model, inputs(2, 6))
    return Made(PlainModel(model, TASKS["token-classification"], inputs(2, 6)).eval(), names)


def test_inputs_have_the_names_of_their_arguments(made: Made) -> None:
    assert made.names == ("ids", "more_vector", "more_mask", "w")
    expected = made.model.model(*inputs(3, 6).args, **inputs(3, 6).kwargs)["logits"]
    assert torch.equal(call(made.model, by_position(inputs(3, 6))), expected)


@pytest.mark.parametrize("name", [pytest.param(f, marks=needs(f)) for f in FORMATS])
def test_a_file_takes_several_inputs_of_any_batch_and_length(
    made: Made, name: str, tmp_path: Path
) -> None:
    form, path = FORMATS[name], tmp_path / f"model{FORMATS[name].suffix}"
    example = by_position(inputs(1, 6))
    program = form.write(made.model, example, path, made.names)
    assert program.shapes == ((6,), (3,), (6,), ())
    dynamic = hasattr(Dim, "AUTO")
    assert program.dynamic == (("batch", "length") if dynamic else ("batch",))
    network = form.load(path, made.names)
    sizes = [(b, t) for b in (1, 2, 5) for t in ((6, 3, 9) if dynamic else (6,))]
    given = [by_position(inputs(*size)) for size in sizes]
    for batch in given:
        torch.testing.assert_close(network(*batch.args), call(made.model, batch).detach())
    for batch, expected in resized(made.model, example) if dynamic else ():
        torch.testing.assert_close(network(*batch.args), expected)
    assert logits(network, given).shape[0] == sum(batch for batch, _ in sizes)
