"""`updp bench`: rows of a run and of two models, what is kept, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests import tiny
from tests.extras import needs
from updp.deploy.bench import Bench
from updp.io.files import read_json, write_json
from updp.measure import use_clock
from updp.models import load_model

EAGER = ("--runtime", "eager", "--rounds", "3")


@pytest.fixture(autouse=True)
def _fixed(fixed_clock: None) -> None:
    """The clock does not vary."""


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return shutil.copytree(finished, tmp_path / "run")


def done(*arguments: str | Path) -> str:
    outcome = tiny.updp("bench", *arguments)
    assert outcome.code == 0, outcome
    return outcome.out


def refused(*arguments: str | Path) -> str:
    outcome = tiny.updp("bench", *arguments)
    lines = [line for line in outcome.err.splitlines() if line.startswith("updp: ")]
    assert (outcome.code, len(lines)) == (2, 1), outcome
    assert outcome.err.rstrip("\n").endswith(lines[0])
    return lines[0].removeprefix("updp: ")


@contextmanager
def settle_on(low: float, median: float, high: float) -> Iterator[None]:
    """Every comparison ends with this ratio and these quartiles of it, in three rounds."""
    ratios = (2 * low - median, median, 2 * high - median)  # quartiles lie half-way between them

    def clock(functions: Mapping[str, object], *_: object) -> dict[str, list[float]]:
        first, *others = functions
        return {first: list(ratios)} | {name: [1.0] * 3 for name in others}

    with use_clock(clock):
        yield


def test_a_run_is_timed_and_its_rows_are_kept(run: Path) -> None:
    before = tiny.contents(run)
    out = done(run, *EAGER, "--batch", "1,4", "--threads", "1", "--threads", "2")
    assert "baseline against merged, 1x8x8" in out
    assert "float32, contiguous" in out
    assert out.count("10.00x (10.00-10.00)") == 4
    assert "400 > 4,000" in out
    assert f"rows: {run}/bench/bench.json" in out
    after = tiny.contents(run)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"bench/bench.json", "bench/.lock"}
    record = Bench.read(run)
    assert [(r.setting.batch_size, r.setting.threads) for r in record.rows] == [
        (1, 1),
        (1, 2),
        (4, 1),
        (4, 2),
    ]
    assert record.rows[0].command[1:3] == ["bench", str(run)]
    assert torch.get_num_threads() == 1


def test_rows_of_other_settings_stay(run: Path) -> None:
    done(run, *EAGER, "--batch", "1,2")
    with settle_on(0.4, 0.5, 0.6):
        out = done(run, *EAGER, "--batch", "2", "--precision", "float32,bfloat16")
    assert out.count("0.50x (0.40-0.60)") == 2
    found = [(r.setting.batch_size, r.setting.precision, r.verdict) for r in Bench.read(run).rows]
    assert found == [(1, "float32", "faster"), (2, "float32", "slower"), (2, "bfloat16", "slower")]


@pytest.mark.parametrize(
    ("low", "median", "high", "said"),
    [
        (0.98, 1.3, 1.5, "no difference (0.98-1.50)"),
        (1.0, 1.3, 1.5, "no difference (1.00-1.50)"),
        (0.7, 0.9, 1.02, "no difference (0.70-1.02)"),
        (1.001, 1.3, 1.5, "1.30x (1.00-1.50)"),
    ],
)
def test_a_speed_up_within_the_noise_is_not_claimed(
    low: float,
    median: float,
    high: float,
    said: str,
    tiny_model: str,
) -> None:
    with settle_on(low, median, high):
        out = done(tiny_model, tiny_model, "--input-size", "1x8x8", *EAGER, "--batch", "2")
    assert said in out
    assert (f"{median:.2f}x" in out) == (low > 1)


@needs("onnx")
def test_two_models_are_timed_and_a_row_that_cannot_run_says_why(
    tiny_model: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.json"
    tokens = tiny_model.replace(":tiny", ":tokens")
    given = (tiny_model, tokens, "--input-size", "1x8x8", "--batch", "2", "--rounds", "3")
    out = done(*given, "--runtime", "eager,onnxruntime", "--precision", "bfloat16", "--out", file)
    assert "not run (1)" in out
    assert "(1) onnxruntime has hardly an operator for bfloat16: take float16 or float32" in out
    assert "10.00x" in out
    record = Bench.open(file)
    assert record.names == (tiny_model, tokens)
    assert [bool(row.failure) for row in record.rows] == [False, True]
    assert json.loads(file.read_text())["rows"][0]["setting"]["runtime"] == "eager"


def test_ctrl_c_leaves_the_rows_so_far(run: Path) -> None:
    calls = 0

    def clock(functions: Mapping[str, object], *round: Any) -> dict[str, list[float]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGINT)
        return tiny.fixed_times(functions, *round)

    with use_clock(clock):
        outcome = tiny.updp("bench", run, *EAGER, "--batch", "1,2,3", "--threads", "2")
    assert outcome.code == 130
    assert "updp: stopped after 1 of 3 rows" in outcome.err
    assert "10.00x" in outcome.out
    assert [row.setting.batch_size for row in Bench.read(run).rows] == [1]
    assert torch.get_num_threads() == 1
    done(run, *EAGER, "--batch", "1,2,3", "--threads", "2")
    assert [row.setting.batch_size for row in Bench.read(run).rows] == [1, 2, 3]


def test_a_run_whose_model_file_is_elsewhere(run: Path, tmp_path: Path) -> None:
    moved, weights = tiny.write_model(tmp_path), tmp_path / "w.safetensors"
    save_file(load_model(moved, seed=0).state_dict(), weights)
    about = read_json(run / "run.json") | {"model": "gone.py:tiny", "weights": "gone"}
    write_json(run / "run.json", about)
    assert refused(run, *EAGER).startswith("model file 'gone.py'")
    assert "10.00x" in done(run, *EAGER, "--batch", "1", "--model", moved)
    assert "10.00x" in done(run, *EAGER, "--batch", "1", "--model", moved, "--weights", weights)
    save_file(load_model(moved, seed=9).state_dict(), weights)
    said = refused(run, *EAGER, "--model", moved, "--weights", weights)
    assert said.startswith(f"'{run}' was made from other weights than '{weights}' has: give those")
    said = refused(moved, moved, "--model", moved, "--input-size", "1x8x8", *EAGER)
    assert said.startswith(f"--model '{moved}' is for runs")


def test_json_takes_the_place_of_a_record_only(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done(run, *EAGER, "--batch", "1,2", "--out", file)
    done(run, *EAGER, "--batch", "4", "--out", file)
    assert [row.setting.batch_size for row in Bench.open(file).rows] == [4]
    # The run's own record is added to, by that name as well.
    done(run, *EAGER, "--batch", "8", "--out", Bench.path(run))
    assert [row.setting.batch_size for row in Bench.read(run).rows] == [1, 2, 4, 8]
    before = tiny.contents(run)
    for other in (run / "plan.json", run / "model.safetensors"):
        said = refused(run, *EAGER, "--batch", "16", "--out", other)
        assert said.startswith((f"'{other}' is not a record of", f"'{other}' cannot be read"))
        assert said.endswith("; move it away")
    assert tiny.contents(run) == before


def test_json_that_cannot_be_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr("updp.deploy.bench.bench_record.write_text", full)
    file = tmp_path / "rows.json"
    outcome = tiny.updp(
        "bench", tiny.write_model(tmp_path), run, *EAGER, "--batch", "1", "--out", file
    )
    assert outcome.code == 3
    assert f"updp: {file}: No space left on device; make room" in outcome.err


def test_rows_of_a_run_that_may_not_be_written_are_in_the_named_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != run)
    outcome = tiny.updp("bench", run, *EAGER, "--batch", "1")
    assert outcome.code == 3
    kept, file = Bench.path(run), tmp_path / "rows.json"
    assert outcome.err == (f"updp: '{kept}' cannot be written: '{run}' may not be written to\n")
    outcome = tiny.updp("bench", run, *EAGER, "--batch", "1", "--out", file)
    assert outcome.code == 0
    assert f"updp: '{kept}' may not be written: rows are in '{file}' alone\n" in outcome.err
    assert len(Bench.open(file).measured) == 1
    assert not kept.parent.exists()
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != tmp_path)
    outcome = tiny.updp("bench", run, *EAGER, "--batch", "1", "--out", file)
    assert outcome.code == 3
    assert f"'{file}' cannot be written: '{tmp_path}' may not be written to" in outcome.err


def test_wrong_arguments_are_refused(run: Path, tiny_model: str, tmp_path: Path) -> None:
    before = tiny.contents(run)
    for arguments, said in {
        (run, "--runtime", "onnx"): "--runtime 'onnx': did you mean onnxruntime? there are",
        (run, "--batch", "1,x"): "--batch 'x': write whole numbers",
        (run, "--rounds", "2"): "--rounds 2: quartiles want at least 3",
        (run, "--device", "gpu"): "device 'gpu' cannot be used here",
        (run, "--input-size", "1x8x8"): f"--input-size is for two models: the run '{run}' has",
        (run, "--weights-b", "w"): "--weights-b is for a second model",
        (run, "--weights-a", "w"): "weights 'w' are not there",
        (run, "--model", "w"): "model 'w': write timm/NAME",
        (tmp_path,): f"'{tmp_path}' holds no finished run: there is no run.json",
        ("timm/resnet18",): "'timm/resnet18' is no run directory: give one, or a second model",
        ("timm/resnet17", "timm/resnet18"): "model 'timm/resnet17' is unknown: did you mean",
        (tiny_model, tiny_model): f"neither '{tiny_model}' nor '{tiny_model}' says its input size",
        (run, *EAGER, "--out", run / "run.json" / "x"): f"'{run}/run.json/x' cannot be written: "
        f"'{run}/run.json' is a file",
        (run, *EAGER, "--out", run): f"'{run}' cannot be written: it is a folder",
    }.items():
        assert refused(*arguments).startswith(said)
    wrong = (tiny_model, tiny_model, "--input-size", "3x8x8", *EAGER, "--batch", "1,2")
    assert refused(*wrong).startswith(
        "nothing could be measured: eager, contiguous, float32: Tiny does not run so (RuntimeError"
    )
    assert tiny.contents(run) == before
    (run / "bench").mkdir()
    Bench.path(run).write_text("{}")
    assert "is not a record of `updp bench`" in refused(run, *EAGER)
    assert Bench.path(run).read_text() == "{}"
