"""Sections for what other commands left in the run directory."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.deploy.report.reading import Page
from updp import Metric, report
from updp.cli.quantize import print_int8
from updp.deploy.bench.bench_record import Bench, Row, Setting
from updp.deploy.bench.bench_record import BenchFigures as BenchSide
from updp.deploy.export.manifest import Exported, Exports
from updp.deploy.int8.int8_record import Int8, Int8Figures, Int8Operator
from updp.measure import Timing
from updp.run.records import RunRecord

EVIL = "<img src=x>"


def exported() -> Exported:
    return Exported(
        format="onnx",
        folder="export/onnx",
        files=[f"{EVIL}.onnx"],
        bytes=2_860_000,
        baseline_bytes=None,
        parameters=10,
        baseline_parameters=20,
        images=64,
        max_abs=3.1e-6,
        max_rel=2.2e-7,
        top1_agreement=98.44,
        undecided=1,
        tolerance=1e-4,
        dynamic=["batch"],
        note=f"height is fixed: {EVIL}",
        input_sizes=[(1, 8, 8)],
        versions={},
        seconds=1.0,
    )


def int8(merged: float) -> Int8:
    operators = [
        Int8Operator(
            name=f"conv{i}",
            site="",
            kind="Conv2d",
            channels=4,
            lowest=0.1,
            highest=1.0,
            spread=10.0,
            signal_to_noise_per_tensor=None,
            signal_to_noise_per_channel=30.0 - i,
        )
        for i in range(12)
    ]
    sides = [
        Int8Figures(
            file="x.onnx",
            metric_float=90.0,
            metric_int8=top1,
            agreement=97.0,
            bytes_float=4_000_000,
            bytes_int8=1_000_000,
            equalised_pairs=0,
            operators=operators,
        )
        for top1 in (89.0, merged)
    ]
    return Int8(
        baseline=sides[0],
        merged=sides[1],
        images=64,
        test_images=500,
        method="minmax",
        per_channel=True,
        equalised=False,
        versions={},
    )


def test_ratios_of_signal_to_noise_have_that_name_and_are_read_by_the_old_one() -> None:
    record = int8(88.0)
    text = record.model_dump_json()
    assert '"signal_to_noise_per_channel":30.0' in text
    assert Int8.model_validate_json(text.replace('"signal_to_noise_', '"noise_')) == record


def bench() -> Bench:
    def row(runtime: str, low: float | None) -> Row:
        setting = Setting(
            device=EVIL, runtime=runtime, batch_size=1, threads=2, precision="f", layout="c"
        )
        if low is None:
            return Row(setting=setting, failure="it does not run")
        one = Timing(median=2.0, low=1.9, high=2.1)
        side = BenchSide(ms=one, images_per_second=500, memory=12_000_000)
        speedup = Timing(median=low + 0.1, low=low, high=low + 0.2)
        return Row(setting=setting, baseline=side, other=side, speedup=speedup)

    rows = [row("eager", 1.2), row("compile", 0.9), row("openvino", None)]
    return Bench(names=("baseline", "merged"), input_shape=(1, 8, 8), rows=rows)


def test_a_record_has_its_section_and_a_missing_one_its_command(run: Path) -> None:
    text = Page(report(run).read_text()).text
    for command in ("updp export", "updp quantize", "updp bench"):
        assert command in text
    Exports(exports={"onnx": exported()}).write(run)
    int8(88.0).write(run)
    bench().write(run)
    html = report(run).read_text()
    found = Page(html)
    assert {"exports", "int8", "bench"} <= found.ids()
    assert "Not in this run" not in found.text
    assert EVIL in found.text
    assert EVIL not in html
    assert "2.86 3.1e-06 2.2e-07 98.44 1 of 64 batch" in found.text
    assert "1.30x (1.20–1.40) faster 12.0 → 12.0" in found.text
    assert "1.00x (0.90–1.10) no difference" in found.text
    assert "openvino: it does not run" in found.text
    assert "mJ" not in found.text
    text = report(run, format="markdown").read_text()
    assert "#### Exported files" in text
    assert "&lt;img" in text
    assert "<" not in text


def test_equalised_says_of_how_many_pairs(run: Path) -> None:
    record = int8(88.0)
    record.write(run)
    assert ", equalised" not in Page(report(run).read_text()).text
    merged = record.merged.model_copy(update={"equalised_pairs": 3})
    record = record.model_copy(update={"equalised": True, "merged": merged})
    record.write(run)
    assert "equalised (0 and 3 pairs of operators)" in Page(report(run).read_text()).text


def test_tables_are_those_of_the_task(run: Path) -> None:
    Exports(exports={"onnx": exported()}).write(run)
    metric = Metric(name="error", unit="m", higher_is_better=False)
    record = int8(90.5).model_copy(
        update={
            "metric": metric,
            "agreement_metric": Metric(name="distance from the baseline", unit="m"),
        }
    )
    record.write(run)
    console = Console(file=StringIO(), width=200)
    print_int8(console, record, run)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    RunRecord.read(run).model_copy(update={"task": "depth"}).write(run)
    text = Page(report(run).read_text()).text
    assert "same class" not in text
    assert "undecided" not in text
    assert "2.86 3.1e-06 2.2e-07 batch" in text
    assert "INT8 costs the merged model +1.50 m more than the baseline" in text
    assert "INT8 costs the merged model +1.50 m against the baseline" in printed
    assert "baseline 90.00 89.00 −1.00 97.00" in text
    assert "merged 90.00 90.50 +0.50 97.00" in text
    for page in (text, printed):
        assert "distance from float32 m" in page


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("agreement", "agreement %"),
        ("mean IoU beside the baseline", "mean IoU beside float32 %"),
        ("top-1", "top-1 beside float32 %"),
    ],
)
def test_int8_is_said_to_be_beside_its_float_model(name: str, said: str) -> None:
    record = int8(88.0).model_copy(update={"agreement_metric": Metric(name=name)})
    assert record.beside_float == said


@pytest.mark.parametrize(
    ("merged", "says"),
    [
        (88.0, "as much as the baseline, within the sampling error"),
        (70.0, "+19.00 points more than the baseline"),
    ],
)
def test_what_int8_costs_is_judged_by_the_sampling_error(
    run: Path, merged: float, says: str
) -> None:
    int8(merged).write(run)
    text = Page(report(run).read_text()).text
    assert says in text
    assert "(8 of 12)" in text
    assert text.index("conv11") < text.index("conv10")  # the noisiest first
