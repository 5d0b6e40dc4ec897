"""The examples of other tasks than classification, with fewer steps."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

FOLDER = Path(__file__).parents[2] / "examples" / "tasks"

pytestmark = pytest.mark.usefixtures("fixed_clock")


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module(name)


class Overlap:
    """In place of torchmetrics': the share of boxes that the surest one found overlaps by half."""

    def __init__(self) -> None:
        self.hits, self.boxes = 0, 0

    def update(self, found: list[Any], real: list[Any]) -> None:
        for own, wanted in zip(found, real, strict=True):
            best = own["boxes"][own["scores"].argsort(descending=True)][:1]
            self.hits += int((box_iou(best, wanted["boxes"]) > 0.5).sum())
            self.boxes += len(wanted["boxes"])

    def compute(self) -> dict[str, torch.Tensor]:
        return {"map": torch.tensor(self.hits / self.boxes)}


@pytest.mark.parametrize(
    ("name", "arguments", "least"),
    [
        ("segmentation", (), 60),
        pytest.param("embedding", (), 60, marks=pytest.mark.slow),
        pytest.param("text", ("encoder",), 45, marks=pytest.mark.slow),
        pytest.param("text", ("decoder",), None, marks=pytest.mark.slow),
        pytest.param("detection", (), 60, marks=pytest.mark.slow),
    ],
)
def test_example_prunes_and_keeps_most(
    name: str, arguments: Any, least: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, inner = ModuleType("torchmetrics"), ModuleType("torchmetrics.detection")
    inner.MeanAveragePrecision = Overlap  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchmetrics", package)
    monkeypatch.setitem(sys.modules, "torchmetrics.detection", inner)
    pruned = example(name, monkeypatch).main(*arguments, steps=60, depth=2)
    result = pruned.result
    assert pruned.plan.choices
    assert result.merge_error["float64"] < 1e-12
    assert result.merged.macs < 0.95 * result.baseline.macs
    if least is None:
        assert result.merged.metric < 12  # of 40 words
    else:
        assert result.baseline.metric >= result.merged.metric - 5 > least - 5
