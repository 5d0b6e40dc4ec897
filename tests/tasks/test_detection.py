"""Detection: torchvision's detectors in the supernet, and boxes as rows of figures."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

import updp
from tests.families import Basic, conv
from updp import UserError
from updp.blocks import find
from updp.blocks.nested import as_samples, same, take
from updp.candidates import proposals
from updp.recipe import CandidateSettings, MergeSettings
from updp.stages.verify import verify
from updp.supernet import Supernet
from updp.supernet.walk import Walk
from updp.tasks import TASKS

TASK = TASKS["detection"]
pytestmark = pytest.mark.usefixtures("one_thread")


class Backbone(nn.Sequential):
    out_channels = 8

    def __init__(self) -> None:
        blocks = [Basic(conv(8, 8), conv(8, 8)) for _ in range(2)]
        super().__init__(nn.Conv2d(3, 8, 4, 4), *blocks)


def detector(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    anchors = AnchorGenerator(sizes=((12,),), aspect_ratios=((1.0,),))
    name = "anchor_generator" if kind is RetinaNet else "rpn_anchor_generator"
    model = kind(Backbone(), 3, min_size=32, max_size=32, **{name: anchors})
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model.eval()


def images(*sizes: tuple[int, int]) -> Any:
    torch.manual_seed(1)
    return as_samples([torch.rand(3, *size) for size in sizes])


@pytest.mark.parametrize("kind", [RetinaNet, FasterRCNN])
def test_a_detector_is_found_pruned_resumed_and_merged(kind: Any) -> None:
    model, x = detector(kind), images((32, 32), (32, 32), (32, 32))
    with torch.no_grad():
        before = TASK.run(model, x)
    findings = find(model, x)
    assert {s.name for s in findings.sites} >= {"backbone.1", "backbone.2"}
    options = {
        site.name: list(proposals(findings.traced(site, model), CandidateSettings()))[:1]
        for site in findings.sites
    }
    net = Supernet(model, findings, options).eval()
    net.calibrate(x)
    with torch.no_grad():
        assert TASK.distance(TASK.run(net, x), before).tolist() == [0, 0, 0]
        modules = [net.switches["backbone.1"], net.switches["backbone.2"]]
        walk = Walk(net, modules, [x], 64, run=TASK.run)
        assert len(list(walk.to(modules[1]))) == 1
        assert same(walk.output(0)[0]["raw"], TASK.run(net, x)[0]["raw"])
    net.choose({name: found[0].label for name, found in list(options.items())[::2]})
    assert verify(net, x, MergeSettings(), task=TASK)
    with torch.no_grad():
        assert TASK.distance(TASK.run(net, x), before).min() > 0


def test_images_of_other_sizes_are_compared_one_by_one() -> None:
    model, x = detector(RetinaNet), images((32, 32), (24, 32))
    with torch.no_grad():
        both, alone = TASK.run(model, x), TASK.run(model, x[1:])
    assert same(both[1]["raw"], alone[0]["raw"])


def test_boxes_reach_torchmetrics_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Metric:
        def update(self, found: Any, real: Any) -> None:
            seen.append((*found, *real))

        def compute(self) -> dict[str, Tensor]:
            return {"map": torch.tensor(0.25)}

    inner = ModuleType("torchmetrics.detection")
    inner.MeanAveragePrecision = Metric  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchmetrics", ModuleType("torchmetrics"))
    monkeypatch.setitem(sys.modules, "torchmetrics.detection", inner)
    model, x = detector(RetinaNet), images((32, 32), (32, 32))
    labels = [
        {"boxes": torch.tensor([[1.0, 2, 13, 14]]), "labels": torch.tensor([2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    with torch.no_grad():
        outputs, returned = TASK.run(model, x), model(*x.args)
    figures = TASK.figures(outputs, labels)
    assert TASK.value([figures, TASK.figures(take(outputs, slice(1)), labels[:1])]) == 25
    assert len(seen) >= 2
    assert torch.equal(seen[0][0]["boxes"].float(), returned[0]["boxes"])
    assert (seen[0][1]["boxes"].tolist(), seen[0][1]["labels"].tolist()) == (
        [[1, 2, 13, 14]],
        [2],
    )


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"as torchvision's detectors have them"):
        TASK.run(nn.Linear(2, 2), images((4, 4)))
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.detection", None)
    with pytest.raises(UserError, match=r"torchmetrics.*updp\[detection\]"):
        TASK.value([torch.zeros(0, 8)])


def test_a_missing_package_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.detection", None)
    boxes = {"boxes": torch.tensor([[1.0, 2, 13, 14]]), "labels": torch.tensor([1])}
    data = Subset([(torch.rand(3, 32, 32), boxes) for _ in range(12)], range(12))
    with pytest.raises(UserError, match=r"^task=detection needs torchmetrics"):
        updp.prune(detector(RetinaNet), data, budget="blocks=1", test=data, task="detection")
