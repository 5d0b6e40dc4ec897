"""`updp quantize RUN`: baseline and merged model in INT8."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from updp.cli import completion
from updp.cli.options import FinishedOptions, FinishedRun

if TYPE_CHECKING:
    from rich.console import Console

    from updp.deploy.int8 import Int8, Int8Figures, Int8Operator

_WORST = 5  # rows of the second table, at most


def quantize(
    run: FinishedRun,
    finished: FinishedOptions,
    calibration_images: Annotated[
        int | None,
        typer.Option(
            "--calibration-images",
            help="Calibration images, the same for both models; 256, or as many as the run has.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="How activations get their ranges: percentile, minmax, entropy.",
            autocompletion=completion.choose("percentile", "minmax", "entropy"),
        ),
    ] = "percentile",
    per_tensor: Annotated[
        bool,
        typer.Option(
            "--per-tensor", help="One scale for each weight instead of one per output channel."
        ),
    ] = False,
    equalize: Annotated[
        bool | None,
        typer.Option(
            "--equalize/--no-equalize",
            help="Equalise channels across layers first, in both models or neither; by default "
            "with --per-tensor, where that brings their calibration logits nearer.",
        ),
    ] = None,
) -> None:
    """Quantise baseline and merged model to INT8 after training, and say what it costs.

    Writes export/model.int8.onnx, baseline.int8.onnx and int8.json into the run directory.
    """
    from updp.cli.tables import standard_console
    from updp.deploy.int8 import quantize as quantize_run
    from updp.io.bars import Bars

    console = standard_console()
    with Bars(console) as bars:
        record = quantize_run(
            run,
            calibration_images=calibration_images,
            method=method,
            per_channel=not per_tensor,
            equalize=equalize,
            model=finished.model,
            data=finished.data,
            test=finished.test,
            weights=finished.weights,
            progress=bars,
        )
    print_int8(console, record, run)


def print_int8(console: Console, record: Int8, run: Path) -> None:
    """Print both models in float32 and INT8, then the merged model's least exact weights."""
    from updp.cli.tables import make_table

    metric = record.metric
    scales = "per channel" if record.per_channel else "per tensor"
    table = make_table(
        f"INT8, weights {scales}; {record.images} calibration images, {record.method}",
        names=(
            "model",
            f"{metric.title}, float32",
            "INT8",
            "loses",
            record.beside_float,
            "MB, float32",
            "INT8",
        ),
    )
    for name, side in (("baseline", record.baseline), ("merged", record.merged)):
        pairs = f", {side.equalised_pairs} pairs equalised" if record.equalised else ""
        table.add_row(f"{name}{pairs}", *_figures(side, record))
    console.print(table)
    worst = make_table(
        "merged model: its least exact weights in this form",
        left=("operator", "site"),
        names=(
            *("operator", "site", "kind", "channels", "ranges", "spread"),
            *("dB per tensor", "dB per channel"),
        ),
    )

    def signal_to_noise(operator: Int8Operator) -> float:
        per_channel, per_tensor = (
            operator.signal_to_noise_per_channel,
            operator.signal_to_noise_per_tensor,
        )
        db = per_channel if record.per_channel else per_tensor
        return math.inf if db is None else db

    for operator in sorted(record.merged.operators, key=signal_to_noise)[:_WORST]:
        worst.add_row(*_weight(operator))
    console.print(worst)
    console.print(
        f"INT8 costs the merged model {metric.difference(record.excess)} against the baseline, on "
        f"{record.test_images} test images. ranges: the smallest and largest magnitude of a "
        "channel; spread: their ratio; dB: signal over what rounding to INT8 loses\n"
        f"files: {run / 'export'}; int8.json has all operators of both models",
        highlight=False,
        soft_wrap=True,
    )


def _figures(side: Int8Figures, record: Int8) -> tuple[str, ...]:
    metric = record.metric
    return (
        *("" if v is None else metric.number(v) for v in (side.metric_float, side.metric_int8)),
        metric.signed(side.loss(metric)),
        record.agreement_metric.number(side.agreement),
        f"{side.bytes_float / 1e6:.3f}",
        f"{side.bytes_int8 / 1e6:.3f}",
    )


def _weight(operator: Int8Operator) -> tuple[str, ...]:

    def db(value: float | None) -> str:
        return "exact" if value is None else f"{value:.1f}"

    return (
        operator.name,
        operator.site,
        operator.kind,
        str(operator.channels),
        f"{operator.lowest:.2g} to {operator.highest:.2g}",
        f"{operator.spread:.1f}",
        db(operator.signal_to_noise_per_tensor),
        db(operator.signal_to_noise_per_channel),
    )
