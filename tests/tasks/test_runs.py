"""Runs of models with other inputs, outputs and tasks, from loader to the loaded model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import updp
from tests import tiny
from tests.families import Basic, conv
from updp import Recipe, UserError
from updp.deploy.export import export
from updp.run.finished import open_finished_run

pytestmark = pytest.mark.usefixtures("fixed_clock")
SITES = ("blocks.0", "blocks.2")


@dataclass
class Out:
    features: Tensor
    logits: Tensor


class Model(nn.Module):
    """Two inputs; what it returns is `form` of features and logits."""

    def __init__(self, form: Any = lambda features, logits: logits, outputs: int = 4) -> None:
        super().__init__()
        self.stem, self.form = nn.Conv2d(3, 4, 1), form
        self.blocks = nn.Sequential(*[Basic(conv(4, 6), conv(6, 4)) for _ in range(3)])
        self.head = nn.Conv2d(4, outputs, 1)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Any:
        features = self.blocks(self.stem(x))
        features = features if gate is None else features * gate[:, :, None, None]
        return self.form(features, self.head(features))


def pooled(features: Tensor, logits: Tensor) -> Tensor:
    return logits.mean((2, 3))


def recipe(*settings: str) -> Recipe:
    base = (
        tiny.make_recipe()
        .updated("data.held_out=16", "data.calibration=16", "data.batch_size=8")
        .updated("subnet.epochs=0", "supernet.epochs=0", "supernet.start=fit", "subnet.start=fit")
    )
    return base.updated("fit.images=16", "search.evaluations=2", "search.refined=2", *settings)


def images(count: int, labels: Any, *more: Tensor) -> TensorDataset:
    x = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(count))
    return TensorDataset(x, *more, labels(x))


def road(
    model: nn.Module, data: Any, test: Any, task: Any, out: Path, *settings: str
) -> updp.Pruned:
    """Prune, and check that what was merged is loaded again bit for bit, the error as a file."""
    torch.manual_seed(0)
    pruned = updp.prune(model, data, recipe(*settings), test=test, task=task, out=out)
    assert pruned.result.merge_error["float64"] < 1e-12
    again = updp.load(out, model)
    states = pruned.model.state_dict(), again.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    return pruned


def test_a_classifier_may_return_more_than_logits(tmp_path: Path) -> None:
    def labels(x: Tensor) -> Tensor:
        return x.mean((2, 3)).argmax(1)

    model = Model(lambda features, logits: Out(features, logits.mean((2, 3))))
    pruned = road(model, images(48, labels), images(16, labels), None, tmp_path / "run")
    assert type(pruned.model(torch.randn(2, 3, 6, 6))) is Out
    assert pruned.result.metric.name == "top-1"


def test_several_inputs_are_walked_resumed_and_reported(tmp_path: Path) -> None:
    class Pairs(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            x, gate, label = super().__getitem__(index)
            return {"x": x, "gate": gate, "label": label}

    def data(count: int) -> Pairs:
        gates = torch.rand(count, 4, generator=torch.Generator().manual_seed(count))
        return Pairs(*images(count, lambda x: x.mean((2, 3)).argmax(1), gates).tensors)

    out, model = tmp_path / "run", Model(pooled)
    road(model, data(48), data(16), None, out, "search.recalibrate=true")
    assert (out / "sites/example.safetensors").exists()
    before = (out / "result.json").read_bytes()
    again = updp.prune(model, data(48), recipe("search.recalibrate=true"), test=data(16), out=out)
    assert (out / "result.json").read_bytes() == before
    assert again.model(torch.ones(1, 3, 6, 6), gate=torch.ones(1, 4)).shape == (1, 4)
    updp.report(out)
    (record,) = export(out, "pt2", model=model, data=(data(48), data(16)))
    assert record.max_abs <= record.tolerance
    assert (record.input_sizes, record.top1_agreement) == ([(3, 6, 6)], 100)
    described = json.loads((out / "export/preprocess.json").read_text())
    assert [(x["name"], x["size"]) for x in described["inputs"]] == [
        ("x", [3, 6, 6]),
        ("gate", [4]),
    ]
    with pytest.raises(UserError, match="takes several inputs: INT8 calibrates one tensor alone"):
        updp.quantize(out, model=model, data=(data(48), data(16)))
    pytest.importorskip("onnxruntime")
    made = updp.bench(model, out, runtimes=["eager", "onnxruntime"], batch_sizes=[1], rounds=3)
    assert [row.failure for row in made.rows] == ["", ""]


class Area(updp.Task):
    """A user's own: the mean of a map, with an error in pixels."""

    name = "area"
    metric = updp.Metric(name="error", unit="px", higher_is_better=False)
    agreement = metric

    def outputs(self, returned: Any) -> Any:
        return returned["area"]

    def figures(self, outputs: Tensor, labels: Tensor) -> Tensor:
        errors = (outputs - labels).abs()
        return torch.stack([errors.sum(), errors.new_tensor(errors.numel())])

    def value(self, figures: Any) -> float:
        total, count = torch.stack([*figures]).sum(0)
        return float(total / count)


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    def area(features: Tensor, logits: Tensor) -> dict[str, Tensor]:
        return {"features": features, "area": logits.mean((1, 2, 3))}

    def data(count: int) -> TensorDataset:
        return images(count, lambda x: x.mean((1, 2, 3)))

    model, out = Model(area), tmp_path / "run"
    pruned = road(model, data(48), data(16), Area(), out, "subnet.epochs=1", "subnet.distill=0.5")
    result = json.loads((out / "result.json").read_text())
    assert result["metric"] == {
        "name": "error",
        "unit": "px",
        "higher_is_better": False,
        "of_samples": False,
    }
    assert pruned.result.change == result["baseline"]["metric"] - result["merged"]["metric"]
    with pytest.raises(UserError, match="a task of its own"):
        open_finished_run(out, model, (data(48), data(16)))
    (record,) = export(out, "pt2", model=model, data=(data(48), data(16)), task=Area())
    assert record.max_abs <= record.tolerance
    pytest.importorskip("onnxruntime")
    int8 = updp.quantize(out, model=model, data=(data(48), data(16)), task=Area())
    assert int8.agreement_metric == Area.agreement
    modules = dict(pruned.model.named_modules())
    sites = {operator.name: operator.site for operator in int8.merged.operators}
    assert set(sites) <= set(modules)
    dropped = {s for s, c in pruned.plan.candidates.items() if c["kind"] == "drop"}
    assert set(sites.values()) - {""} == set(pruned.plan.choices) - dropped


def test_a_built_in_task_trains_with_its_labels(tmp_path: Path) -> None:
    def labels(x: Tensor) -> Tensor:
        return (x.mean((2, 3)).repeat(1, 2)[:, :4] > 0).float()

    model = Model(lambda features, logits: (logits.mean((2, 3)), features))
    data = images(48, labels), images(16, labels)
    pruned = road(model, *data, "multi-label", tmp_path / "run", "subnet.epochs=1")
    assert pruned.result.metric == updp.find_task("multi-label").metric
    assert set(pruned.result.by_stage) > {"baseline", "merged"}


def test_what_fits_no_task_is_one_line(tmp_path: Path) -> None:
    data = images(48, lambda x: x.mean((1, 2, 3)))
    with pytest.raises(UserError, match=r"task 'regression': figures fails on tensors of .*16"):
        road(Model(pooled), data, data, "regression", tmp_path / "a", "data.held_out=16")
    with pytest.raises(UserError, match=r"subnet\.mixup=0\.2 is for task=classification"):
        road(Model(pooled), data, data, "regression", tmp_path / "b", "subnet.mixup=0.2")
