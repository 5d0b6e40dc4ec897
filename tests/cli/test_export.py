"""`updp export`: arguments, the table, exit codes."""

from __future__ import annotations

import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests import tiny
from updp import UserError
from updp.cli.export import print_exports
from updp.deploy.export import FORMATS, read_exports
from updp.deploy.export import exporter as runs
from updp.deploy.export.parity import Parity
from updp.io.files import read_json
from updp.run.records import RunRecord

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def test_several_formats_and_the_table(run: Path, tmp_path: Path) -> None:
    arguments = ("--to", "pt2,safetensors", "--to", "pt2", "--test-images", "20")
    outcome = tiny.updp("export", run, *arguments, "--out", tmp_path / "files")
    assert (outcome.code, outcome.err) == (0, "")
    records = read_exports(run)
    assert list(records) == ["pt2", "safetensors"]
    for name, record in records.items():
        assert record.files[0] in outcome.out
        assert (tmp_path / "files" / record.files[0]).exists()
        assert f"export: 2/2, {name}" in outcome.out or name == "pt2"
    assert "20 test images" in outcome.out
    assert f"{records['pt2'].parameters:,} parameters; the baseline has" in outcome.out
    assert read_json(tmp_path / "files/preprocess.json")["input"]["name"] == "images"
    for task, classifies in (("classification", True), ("depth", False)):
        RunRecord.read(run).model_copy(update={"task": task}).write(run)
        console = Console(file=StringIO(), width=200)
        print_exports(console, [*records.values()], run)
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        assert ("same best class" in printed) == ("undecided" in printed) == classifies


def test_onnx_is_the_default(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "onnx", FORMATS["safetensors"])
    assert tiny.updp("export", run, "--test-images", "5").code == 0
    assert (run / "export/model.safetensors").exists()


def test_a_file_that_is_wrong_is_exit_code_1(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Parity(5, 1.0, 0.1, 80.0, 0, 1e-4)
    monkeypatch.setattr(runs, "compare", lambda *_: bad)
    outcome = tiny.updp("export", run, "--to", "pt2", "--test-images", "5")
    assert outcome.code == 1
    assert outcome.err == (
        "updp: export to pt2: on 5 images logits differ by 1e+00 (allowed: 1e-04) and the best "
        "class agrees on 80.00 %; no file is kept\n"
    )
    assert [p.name for p in (run / "export").iterdir()] == [".export.lock"]


def test_what_was_written_is_shown_before_what_failed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(program: object, path: Path) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(FORMATS["pt2"], "save", fail)
    outcome = tiny.updp("export", run, "--to", "pt2,safetensors", "--test-images", "5")
    assert outcome.code == 1
    assert outcome.err == ("updp: export to pt2: RuntimeError: no such operator; no file is kept\n")
    assert "model.safetensors" in outcome.out
    assert list(read_exports(run)) == ["safetensors"]


def test_help_says_what_device_is_taken(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(tiny.updp("export", "--help").out.replace("│", " ").split())
    assert "prepared: cpu, the default" in text
    assert "cuda if there is one" not in text
    seen: list[object] = []

    def stop(*_: object, device: str, **__: object) -> None:
        seen.append(device)
        raise UserError("enough")

    monkeypatch.setattr(runs, "open_finished_run", stop)
    assert tiny.updp("export", run, "--to", "pt2").code == 2
    assert seen == ["cpu"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "onxx"], "--to 'onxx' is no format: give onnx, pt2, safetensors, openvino, "),
        (["--to", ""], "--to '' is no format"),
        (["--to", "pt2,hub"], "--to hub writes a folder of its own: give it alone"),
        (["--to", "pt2", "--test-images", "0"], "--test-images 0: compare on 1 at least"),
        (["--to", "pt2", "--data", "nowhere"], "data 'nowhere' is not there"),
        (["--to", "pt2", "--device", "abacus"], "device 'abacus' cannot be used here"),
    ],
)
def test_mistakes_of_the_user_are_one_line(run: Path, arguments: list[str], said: str) -> None:
    before = tiny.contents(run)
    outcome = tiny.updp("export", run, *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(f"updp: {said}")
    assert outcome.err.count("\n") == 1
    assert tiny.contents(run) == before


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    outcome = tiny.updp("export", tmp_path / "none", "--to", "pt2")
    assert outcome.code == 2
    assert "holds no finished run: there is no run.json; `updp prune` makes it" in outcome.err
    assert not (tmp_path / "none").exists()
