"""`updp quantise` on a finished run."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import updp
from tests import tiny
from tests.sampling import slow
from updp.deploy.int8 import Int8
from updp.deploy.int8 import int8_model as forms
from updp.deploy.int8 import quantization as module
from updp.deploy.int8.int8_model import FloatModel, Int8Model
from updp.io.progress import Silent
from updp.run.finished import open_finished_run

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'updp[onnx]'")


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run that was quantised; tests only read it."""
    folder = tmp_path_factory.mktemp("quantised") / "run"
    shutil.copytree(finished, folder)
    outcome = tiny.updp("quantize", folder, "--calibration-images", "48")
    assert (outcome.code, outcome.err) == (0, "")
    assert "48 calibration images, percentile" in outcome.out
    assert "INT8 costs the merged model" in outcome.out
    return folder


def predict(file: Path, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return np.asarray(logits)


@pytest.mark.slow
def test_files_run_by_onnx_runtime_alone_and_are_close_to_the_models(run: Path) -> None:
    opened = open_finished_run(run, device="cpu")
    images = torch.cat([x for x, _ in opened.feed.test()])
    record = Int8.model_validate_json((run / "export" / "int8.json").read_text())
    for side, model in ((record.baseline, opened.baseline), (record.merged, opened.merged)):
        with torch.no_grad():
            exact = model(images).numpy()
        found = predict(run / "export" / side.file, images)
        assert np.linalg.norm(found - exact) < 0.2 * np.linalg.norm(exact)
        assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.98
        labels = torch.cat([y for _, y in opened.feed.test()]).numpy()
        assert side.metric_int8 == pytest.approx(100 * (found.argmax(1) == labels).mean())
        assert side.metric_float == pytest.approx(100 * (exact.argmax(1) == labels).mean(), abs=0.3)
        same = 100 * (found.argmax(1) == exact.argmax(1)).mean()
        assert side.agreement == pytest.approx(same, abs=0.3)
        assert side.bytes_int8 == (run / "export" / side.file).stat().st_size


def test_the_record_names_every_operator_and_its_site(run: Path) -> None:
    record = Int8.model_validate_json((run / "export" / "int8.json").read_text())
    opened = open_finished_run(run, device="cpu")
    modules = dict(opened.merged.named_modules())
    sites, apart = set(), 0
    for operator in record.merged.operators:
        weight = modules[operator.name].weight.detach().clone()
        if operator.site and operator.highest < 0.9 * weight.abs().max():  # its skip is apart
            centre = range(len(weight))
            weight[centre, centre, weight.shape[2] // 2, weight.shape[3] // 2] -= 1
            apart += 1
        ranges = weight.abs().flatten(1).amax(1)
        assert operator.channels == len(ranges)
        assert operator.spread == pytest.approx(operator.highest / operator.lowest)
        if operator.site:  # no BatchNorm is left to be folded into it
            assert operator.name.startswith(operator.site.partition(":")[0])
            assert operator.lowest == pytest.approx(ranges.min().item())
            assert operator.highest == pytest.approx(ranges.max().item())
            sites.add(operator.site)
    assert (apart, record.baseline.skips_apart) == (record.merged.skips_apart, 0)
    dropped = {s for s, c in opened.plan.candidates.items() if c["kind"] == "drop"}
    assert sites == set(opened.plan.choices) - dropped
    assert not any(operator.site for operator in record.baseline.operators)
    assert len({operator.name for operator in record.baseline.operators}) == 10


def test_both_models_are_calibrated_on_the_same_images(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    original = forms.quantize_model

    def watch(model: Any, images: torch.Tensor, *rest: Any, **options: Any) -> bytes:
        seen.append(images)
        return original(model, images, *rest, **options)

    monkeypatch.setattr(forms, "quantize_model", watch)
    folder = shutil.copytree(finished, tmp_path / "run")
    record = updp.quantize(folder, calibration_images=20, method="minmax", per_channel=False)
    assert (record.per_channel, record.images) == (False, 20)
    assert len(seen) == 4  # each as it is and equalised; the better one is kept
    assert all(torch.equal(seen[0], other) for other in seen[1:])
    pairs = [side.equalised_pairs for side in (record.baseline, record.merged)]
    assert record.equalised == any(pairs) == bool(pairs[0])
    assert pairs[0] in (0, 4)  # conv1 and conv2 of every block
    feed = open_finished_run(folder, device="cpu").feed
    assert torch.equal(seen[0], torch.cat(feed.calibration(20)))
    test = torch.cat([images for images, _ in feed.test()])
    assert not any((test == image).flatten(1).all(1).any() for image in seen[0])


@pytest.mark.parametrize(
    ("lost", "equalised"),
    [
        slow({"baseline": (0.1, 0.2), "merged": (0.5, 0.3)}, True),
        ({"baseline": (0.1, 0.4), "merged": (0.5, 0.3)}, False),
        slow({"baseline": (0.1, 0.1), "merged": (0.3, 0.3)}, False),
    ],
)
def test_channels_are_equalised_in_both_models_or_in_neither(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: dict[str, tuple[float, float]],
    equalised: bool,
) -> None:
    class Made(FloatModel):
        def quantize(self, method: str, *, per_channel: bool, equalised: bool) -> Int8Model:
            plain = replace(quick(self, method), pairs=4 * equalised)
            return replace(plain, lost=lost[self.file.parent.name][equalised])

    def quick(made: FloatModel, method: str) -> Int8Model:
        return FloatModel.quantize(made, method, per_channel=False, equalised=False)

    monkeypatch.setattr(module, "FloatModel", Made)
    folder = shutil.copytree(finished, tmp_path / "run")
    steps = Steps()
    record = updp.quantize(
        folder, calibration_images=8, method="minmax", per_channel=False, progress=steps
    )
    assert record.equalised == equalised
    assert record.baseline.equalised_pairs == record.merged.equalised_pairs == 4 * equalised
    each = ["baseline", "baseline, equalised", "merged", "merged, equalised"]
    assert steps.seen == [6, *each, "baseline, test images", "merged, test images"]


class Steps(Silent):
    """Totals and notes, in order."""

    def __init__(self) -> None:
        self.seen: list[int | str] = []

    def begin(self, name: str, total: int, done: int = 0) -> None:
        if name == "quantize":
            self.seen.append(total)

    def advance(self, note: str = "") -> None:
        self.seen.append(note)


@pytest.mark.parametrize("where", ["fold", slow("quantize_model")])
def test_what_fails_in_the_runtime_is_one_line(
    finished: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("[ONNXRuntimeError] no kernel\nand a long stack")

    monkeypatch.setattr(forms, where, fail)
    outcome = tiny.updp("quantize", finished, "--calibration-images", "8")
    assert outcome.code == 1
    assert outcome.err == (
        "updp: INT8 of the baseline model: RuntimeError: [ONNXRuntimeError] no kernel; "
        "no file is written\n"
    )
    assert not (finished / "export").exists()


def test_a_file_in_place_of_the_folder_is_named_before_the_work(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "export").write_text("mine")
    monkeypatch.delattr(module, "open_finished_run")
    outcome = tiny.updp("quantize", folder)
    assert outcome.code == 2
    assert outcome.err == (
        f"updp: '{folder / 'export'}' is a file where the folder of exports belongs: move it away\n"
    )


def test_a_run_that_may_not_be_written_is_named_before_the_work(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, how: Path(path) != finished or not how & os.W_OK)
    monkeypatch.delattr(module, "open_finished_run")
    outcome = tiny.updp("quantize", finished)
    assert outcome.code == 3
    assert outcome.err == (
        f"updp: '{finished}' may not be written to, and the files go into '{finished / 'export'}': "
        "change its permissions, or copy the run directory to another place\n"
    )


@pytest.mark.slow  # as for exports
def test_a_kill_leaves_no_record_of_other_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")

    def stop(path: Path, _: bytes) -> None:
        assert not (folder / "export/int8.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        updp.quantize(folder, calibration_images=8, method="minmax")


def test_nothing_else_in_the_run_changes(run: Path, finished: Path) -> None:
    before, after = tiny.contents(finished), tiny.contents(run)
    added = {"export/model.int8.onnx", "export/baseline.int8.onnx", "export/int8.json"}
    assert {name for name, data in after.items() if before.get(name) != data} == added
    assert set(before) | added == set(after)
    assert json.loads(after["export/int8.json"])["versions"]["onnxruntime"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--calibration-images", "1000"],
            "--calibration-images 1000 is more than the 64 calibration images",
        ),
        (["--calibration-images", "1"], "--calibration-images 1 is too few"),
        (["--method", "best"], "--method best is not known: take percentile, minmax, entropy"),
    ],
)
def test_bad_input_is_one_line(finished: Path, arguments: list[str], words: str) -> None:
    outcome = tiny.updp("quantize", finished, *arguments)
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (finished / "export").exists()


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    outcome = tiny.updp("quantize", tmp_path)
    assert outcome.code == 2
    assert f"'{tmp_path}' holds no finished run" in outcome.err


def test_a_missing_package_is_named(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    outcome = tiny.updp("quantize", finished)
    assert outcome.code == 2
    assert outcome.err == "updp: INT8 needs onnxruntime: pip install 'updp[onnx]'\n"
