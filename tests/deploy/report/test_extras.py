"""Sections for what other commands left in the run directory."""

from pathlib import Path

import pytest

from tests.deploy.report.reading import Page
from updp import report
from updp.deploy.bench.bench_record import Bench, Row, Setting
from updp.deploy.bench.bench_record import BenchFigures as BenchSide
from updp.deploy.export.manifest import Exported, Exports
from updp.deploy.int8.int8_record import Int8, Int8Figures, Int8Operator
from updp.measure import Timing

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
