import sys

import pytest
import torch

from updp.deploy.bench import RUNTIMES, Grid
from updp.deploy.bench.grid import LAYOUTS, PRECISIONS, installed
from updp.errors import UserError


def test_every_combination_is_a_row() -> None:
    grid = Grid.of(["eager", "openvino"], ["1", "32", "1"], ["1", "2"], PRECISIONS, LAYOUTS)
    settings = grid.settings(torch.device("cpu"))
    assert len(settings) == len(set(settings)) == 2 * 2 * 2 * 3 * 2
    assert {s.batch_size for s in settings} == {1, 32}
    assert [s.runtime for s in settings] == 24 * ["eager"] + 24 * ["openvino"]


def test_an_empty_grid_takes_the_defaults(
    monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    grid = Grid.of()
    assert "openvino" not in grid.runtimes
    assert grid.runtimes == installed()
    assert {"eager", "compile"} <= set(grid.runtimes) <= set(RUNTIMES)
    assert (grid.batch_sizes, grid.threads) == ((1, 32), (1,))
    assert (grid.precisions, grid.layouts) == (("float32",), ("contiguous",))


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        (
            "runtimes",
            "onnx",
            "--runtime 'onnx': did you mean onnxruntime? there are eager, compile, onnxruntime, "
            "openvino",
        ),
        ("runtimes", "Z", "--runtime 'Z': there are eager, compile, onnxruntime, openvino"),
        ("precisions", "fp16", "--precision 'fp16': did you mean float16? there are float32, "),
        ("layouts", "channel_last", "--layout 'channel_last': did you mean channels_last? "),
        ("batch_sizes", "0", "--batch '0': write whole numbers from 1, such as 1,32"),
        ("batch_sizes", "many", "--batch 'many': write whole numbers"),
        ("threads", "-1", "--threads '-1': write whole numbers"),
        ("threads", "1.5", "--threads '1.5': write whole numbers"),
    ],
)
def test_a_wrong_value_is_quoted_with_its_flag(flag: str, value: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        Grid.of(**{flag: [value]})
    assert str(raised.value).startswith(said)
