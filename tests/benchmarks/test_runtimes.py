"""What the page of benchmarks.speed.runtimes claims, and which rows it measures and keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.speed import runtimes
from updp.blocks import find
from updp.candidates import proposals
from updp.deploy.bench import BenchFigures, Pair, Row, Setting
from updp.errors import UserError
from updp.measure import Timing
from updp.models import load_model
from updp.recipe import Recipe


def row(runtime: str, low: float, median: float, high: float) -> Row:
    setting = Setting(
        device="CPU",
        runtime=runtime,
        batch_size=1,
        threads=2,
        precision="float32",
        layout="contiguous",
    )
    side = BenchFigures(ms=Timing(median=2, low=1, high=3), images_per_second=500)
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
def test_speed_ups_that_overlap_are_not_ranked(onnx: tuple[float, float, float], said: str) -> None:
    rows = {"eager": row("eager", 1.2, 1.25, 1.3), "onnxruntime": row("onnxruntime", *onnx)}
    assert runtimes.against_eager(rows) == said
    assert runtimes.against_eager({"eager": rows["eager"]}) == ""


def test_a_row_that_failed_says_why_and_noise_is_no_difference() -> None:
    failed = row("openvino", 1, 1, 1).model_copy(
        update={"baseline": None, "other": None, "speedup": None, "failure": "no|such"}
    )
    rows = [row("eager", 1.2, 1.25, 1.3), row("onnxruntime", 0.9, 1.1, 1.2), failed]
    bench = {"names": ("baseline", "merged"), "input_shape": (3, 8, 8), "rows": rows}
    entry = {"network": "timm/resnet34", "batch": 1, "macs_ratio": 1.24, "bench": bench}
    text = runtimes.page([{"device": "CPU", "versions": {"torch": "2"}, "entries": [entry]}])
    assert (
        "| resnet34 | 1 | 1.24 | 1.25x (1.20-1.30) | no difference (0.90-1.20) "
        "| not run: no/such | overlaps |"
    ) in text
    assert "| resnet34 | 1 | 2.0 > 2.0 | 2.0 > 2.0 |  |" in text


NETWORK = "timm/resnet34"


class Script:
    """The benchmark without its networks and its clock: it notes what it was to measure."""

    def __init__(self, patch: pytest.MonkeyPatch, output: Path) -> None:
        self.output = output
        self.measured: list[str] = []
        self.plans: list[Any] = []  # as the model is pruned
        self.chosen = 0
        self.failing: set[str] = set()
        self.median = 1.5
        patch.setattr(runtimes, "chosen", self._choose)
        patch.setattr(runtimes, "pruned", self._prune)
        patch.setattr("updp.deploy.bench.benchmark.measure_rows", self._measure)

    def _choose(self, *_: object) -> dict[str, str]:
        self.chosen += 1
        return {"layer1.0": f"fuse {self.chosen}"}

    def _prune(self, name: str, plan: Any, device: torch.device) -> tuple[Pair, float]:
        self.plans.append(plan)
        return Pair(("baseline", "merged"), (torch.nn.Identity(), torch.nn.Identity()), (3,)), 1.2

    def _measure(self, pair: Pair, settings: list[Setting], *_: object) -> Iterator[Row]:
        for setting in settings:
            self.measured.append(f"{setting.runtime} {setting.batch_size}")
            if setting.runtime in self.failing:
                yield Row(setting=setting, failure="it is missing")
            else:
                new = row(setting.runtime, 1.1, self.median, 2)
                yield new.model_copy(update={"setting": setting, "versions": {"torch": "2"}})

    def __call__(self, *arguments: str) -> list[str]:
        self.measured = []
        runtimes.main(["--network", NETWORK, "--output", str(self.output), *arguments])
        return self.measured

    def rows(self, batch: int = 1) -> dict[str, float | None]:
        """The speed-ups that were written."""
        (file,) = self.output.glob("*.json")
        entries = {e["batch"]: e for e in json.loads(file.read_text())["entries"]}
        return {
            r["setting"]["runtime"]: r["speedup"] and r["speedup"]["median"]
            for r in entries[batch]["bench"]["rows"]
        }


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    return Script(monkeypatch, tmp_path)


def test_rows_join_those_that_are_there_under_one_plan(script: Script) -> None:
    assert script("--batch", "1", "--runtime", "eager") == ["eager 1"]
    assert script("--batch", "1", "--runtime", "openvino") == ["openvino 1"]
    assert script.rows() == {"eager": 1.5, "openvino": 1.5}
    script.median = 1.7
    assert script("--batch", "1", "--runtime", "eager", "--fresh") == ["eager 1"]
    assert script.rows() == {"eager": 1.7, "openvino": 1.5}
    assert script.chosen == 1
    assert script.plans == [{"layer1.0": "fuse 1"}] * 3
    assert "| resnet34 | 1 | 1.20 | 1.70x" in (script.output / "runtimes.md").read_text()


def test_only_what_is_missing_is_measured(script: Script) -> None:
    script.failing = {"openvino"}
    asked = ("--batch", "1", "4", "--runtime", "eager", "onnxruntime", "openvino")
    everything = [f"{r} {b}" for b in (1, 4) for r in ("eager", "onnxruntime", "openvino")]
    assert script(*asked) == everything
    assert script(*asked) == ["openvino 1", "openvino 4"]  # nothing ran, and the script goes on
    assert script.rows(4) == {"eager": 1.5, "onnxruntime": 1.5, "openvino": None}
    script.failing = set()
    assert script("--batch=1,4", "--runtime=eager,openvino") == ["openvino 1", "openvino 4"]
    assert script.rows(4)["openvino"] == 1.5
    script.failing = {"eager"}
    script(*asked, "--fresh")
    assert script.rows(4)["eager"] == 1.5  # not given up for a failure
    assert script(*asked) == []


def test_rows_are_kept_as_they_come(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: Any) -> Iterator[Row]:
        yield next(script._measure(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr("updp.deploy.bench.benchmark.measure_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        script("--batch", "1", "--runtime", "eager", "openvino")
    assert script.rows() == {"eager": 1.5}


def test_wrong_options_are_told_in_a_line(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--rounds=2", "--runtime=egaer", "--batch=0"):
        with pytest.raises(SystemExit) as stop:
            script(option)
        assert stop.value.code == 2
        assert option.partition("=")[0] in capsys.readouterr().err.splitlines()[-1]
    assert script.measured == []


def test_versions_of_several_days_are_all_told() -> None:
    rows = [{"versions": v} for v in ({"torch": "2.1"}, {}, {"torch": "2.2", "openvino": "1"})]
    found = runtimes.used_versions([{"bench": {"rows": rows}}])
    assert found == {"torch": "2.1 and 2.2", "openvino": "1"}


def test_a_plan_is_applied_by_its_labels_alone(tiny_model: str) -> None:
    x = torch.randn(2, 1, 8, 8)
    model = load_model(tiny_model, seed=1).eval()
    findings = find(model, x)
    site = findings.sites[1]
    offered = proposals(findings.traced(site, model), Recipe().candidates)
    label = next(c.label for c in offered if c.label != "drop")
    with pytest.raises(UserError, match=f"has 'gone' at {site.name}, which is offered no longer"):
        runtimes.merged(model, x, {site.name: "gone"})
    with pytest.raises(UserError, match="at nowhere, which is offered no longer"):
        runtimes.merged(model, x, {"nowhere": label})
    before = sum(isinstance(m, torch.nn.Conv2d) for m in model.modules())
    merged = runtimes.merged(model, x, {site.name: label})
    assert sum(isinstance(m, torch.nn.Conv2d) for m in merged.modules()) == before - 1
    assert merged(x).shape == (2, 10)
