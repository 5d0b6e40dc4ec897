"""What the table of benchmarks/runtimes.py claims."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from updp.compare import Row, Setting, Side
from updp.result import Timing


@pytest.fixture
def runtimes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("runtimes")


def row(runtime: str, low: float, median: float, high: float) -> Row:
    setting = Setting(
        device="CPU",
        runtime=runtime,
        batch_size=1,
        threads=2,
        precision="float32",
        layout="contiguous",
    )
    side = Side(ms=Timing(median=2, low=1, high=3), images_per_second=500)
    speedup = Timing(median=median, low=low, high=high)
    return Row(setting=setting, baseline=side, other=side, speedup=speedup)


@pytest.mark.parametrize(
    ("onnx", "said"),
    [
        ((1.31, 1.4, 1.5), "above"),
        ((1.3, 1.4, 1.5), "overlaps"),
        ((1.0, 1.1, 1.2), "overlaps"),
        ((1.0, 1.1, 1.19), "below"),
    ],
)
def test_speed_ups_that_overlap_are_not_ranked(
    onnx: tuple[float, float, float], said: str, runtimes: ModuleType
) -> None:
    rows = {"eager": row("eager", 1.2, 1.25, 1.3), "onnxruntime": row("onnxruntime", *onnx)}
    assert runtimes.against_eager(rows) == said
    assert runtimes.against_eager({"eager": rows["eager"]}) == ""


def test_the_table(runtimes: ModuleType) -> None:
    failed = row("openvino", 1, 1, 1).model_copy(
        update={"baseline": None, "other": None, "speedup": None, "failure": "no|such"}
    )
    rows = [row("eager", 1.2, 1.25, 1.3), row("onnxruntime", 0.9, 1.1, 1.2), failed]
    bench = {"names": ("baseline", "merged"), "input_shape": (3, 8, 8), "rows": rows}
    entry = {"network": "timm/resnet34", "batch": 1, "macs_ratio": 1.24, "bench": bench}
    text = runtimes.table([{"device": "CPU", "versions": {"torch": "2"}, "entries": [entry]}])
    assert (
        "| resnet34 | 1 | 1.24 | 1.25x (1.20-1.30) | no difference (0.90-1.20) "
        "| not run: no/such | overlaps |"
    ) in text
    assert "| resnet34 | 1 | 2.0 > 2.0 | 2.0 > 2.0 |  |" in text
