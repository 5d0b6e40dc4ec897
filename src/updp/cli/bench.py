"""`updp bench`: the merged model against its baseline, or any two models."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from updp.cli import completion
from updp.cli.options import DeviceOption, JsonOption, SizeOption, parse_size

if TYPE_CHECKING:
    from rich.console import Console

    from updp.deploy.bench import Bench, BenchFigures, Row

_MANY = "(with commas, or repeated)"


@dataclass(frozen=True)
class GridOptions:
    """Settings of the measurement; every combination is a row."""

    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            help=f"Any of eager, compile, onnxruntime, openvino {_MANY}; by default all installed.",
            autocompletion=completion.choose_several("eager", "compile", "onnxruntime", "openvino"),
        ),
    ] = None
    batch: Annotated[
        list[str] | None, typer.Option("--batch", help=f"Batch sizes {_MANY}; by default 1 and 32.")
    ] = None
    threads: Annotated[
        list[str] | None,
        typer.Option("--threads", help=f"Numbers of threads {_MANY}; by default PyTorch's own."),
    ] = None
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            help=f"Any of float32, bfloat16, float16 {_MANY}; by default float32.",
            autocompletion=completion.choose_several("float32", "bfloat16", "float16"),
        ),
    ] = None
    layout: Annotated[
        list[str] | None,
        typer.Option(
            "--layout",
            help=f"Any of contiguous, channels_last {_MANY}; by default contiguous.",
            autocompletion=completion.choose_several("contiguous", "channels_last"),
        ),
    ] = None
    rounds: Annotated[
        int, typer.Option("--rounds", help="Interleaved repetitions, at least 3.")
    ] = 21


@dataclass(frozen=True)
class PairOptions:
    """Device, image size and weights of the two models."""

    device: DeviceOption = None
    input_size: SizeOption = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The baseline of a run, if it is a model file: path/file.py:factory.",
        ),
    ] = None
    weights_a: Annotated[
        str | None,
        typer.Option(
            "--weights",
            "--weights-a",
            help="Safetensors file for the baseline of a run, if it was moved; or for A.",
        ),
    ] = None
    weights_b: Annotated[
        str | None, typer.Option("--weights-b", help="Safetensors file for B.")
    ] = None


def bench(
    baseline: Annotated[
        str,
        typer.Argument(
            metavar="RUN|A",
            help="A finished run; or a model by name, or a run.",
            autocompletion=completion.model_or_run,
        ),
    ],
    grid: GridOptions,
    pair: PairOptions,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="[B]",
            help="A second one, that is timed against the first.",
            autocompletion=completion.model_or_run,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A JSON file for this command's rows, too.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time a run's merged model against its baseline, or B against A.

    Both run in turn, in this process; every combination of the options is a row. The speed-up is
    the median of the ratios of each round, with their quartiles; where these lie on both sides of 1
    there is no difference.

    A run keeps its rows in RUN/bench/bench.json; the same command measures again. Ctrl-C leaves
    the rows so far.
    """
    from updp.cli.tables import error_console, standard_console
    from updp.deploy.bench import Grid, check_place, measure, open_pair
    from updp.io.bars import Bars
    from updp.io.files import not_writable
    from updp.io.interrupts import Stopped
    from updp.run.inputs import as_device

    lists = (grid.runtime, grid.batch, grid.threads, grid.precision, grid.layout)
    wanted, target = Grid.of(*map(_split, lists)), as_device(pair.device)
    if out is not None:
        check_place(out)
    models, kept = open_pair(
        baseline,
        other,
        (pair.weights_a, pair.weights_b),
        None if pair.input_size is None else parse_size(pair.input_size),
        pair.model,
    )
    if out is not None and kept is not None and out.resolve() == kept.resolve():
        out = None  # `kept` also has rows of earlier commands, which `out` would lose
    if out is not None and kept is not None and not_writable(kept.parent):
        print(f"updp: '{kept}' may not be written: rows are in '{out}' alone", file=sys.stderr)
        kept = None
    record: Bench | None = None
    stopped: Stopped | None = None
    with Bars(error_console()) as bars:
        try:
            for record in measure(models, wanted, target, kept, grid.rounds, bars):
                if out is not None and record.measured:
                    record.save(out)
        except Stopped as stop:
            stopped = stop
    if record is not None and as_json:
        print(record.model_dump_json(indent=2))
    elif record is not None:
        console = standard_console()
        print_bench(console, record)
        places = [str(place) for place in (kept, out) if place is not None and record.measured]
        if places:
            console.print(f"rows: {', '.join(places)}", highlight=False, soft_wrap=True)
    if stopped:
        done = 0 if record is None else len(record.rows)
        total = len(wanted.settings(target))
        print(
            f"updp: stopped after {done} of {total} rows; the command starts again", file=sys.stderr
        )
        raise typer.Exit(stopped.exit_code)


def print_bench(console: Console, bench: Bench) -> None:
    """Print the rows as a table; its title has the settings that all rows share."""
    from rich.table import Table

    rows = bench.rows
    fields = {
        "runtime": [row.setting.runtime for row in rows],
        "batch": [str(row.setting.batch_size) for row in rows],
        "threads": [str(row.setting.threads) for row in rows],
        "precision": [row.setting.precision for row in rows],
        "layout": [row.setting.layout for row in rows],
    }
    shared = {
        n: v[0] for n, v in fields.items() if len(set(v)) == 1 and n not in ("runtime", "batch")
    }
    if "threads" in shared:
        shared["threads"] += " thread" if shared["threads"] == "1" else " threads"
    shared_text = "".join(f", {value}" for value in shared.values())
    shape = "x".join(map(str, bench.input_shape))
    first, second = bench.names
    table = Table(
        title=f"{first} against {second}, {shape}; {rows[0].setting.device}{shared_text}",
        title_justify="left",
    )
    varying = {name: values for name, values in fields.items() if name not in shared}
    for name in varying:
        table.add_column(name, justify="left" if name in ("runtime", "precision") else "right")
    with_energy = any(row.baseline and row.baseline.energy is not None for row in rows)
    headers = [f"ms: {first}", f"ms: {second}", "images/s", "memory, MB"]
    for name in (*headers, *(["J/image"] if with_energy else []), "speed-up (IQR)"):
        table.add_column(name, justify="right", overflow="fold")
    reasons = list(dict.fromkeys(row.failure for row in rows if row.failure))
    for index, row in enumerate(rows):
        cells = _cells(row, with_energy)
        if row.failure:
            cells[-1] = f"not run ({reasons.index(row.failure) + 1})"
        table.add_row(*(values[index] for values in varying.values()), *cells)
    console.print(table)
    for number, reason in enumerate(reasons, 1):
        console.print(f"({number}) {reason}", highlight=False)
    sources = dict.fromkeys(row.energy_from for row in rows if row.energy_from)
    console.print(
        "ms: median (quartiles) of a batch; speed-up: of the ratios of each round, and no "
        "difference where their quartiles lie on both sides of 1.\nmemory: activations at the "
        "worst moment, the images among them; - where the runtime does not say.\n"
        f"energy: {'; '.join(sources)}",
        highlight=False,
    )


def _cells(row: Row, with_energy: bool) -> list[str]:

    if row.baseline is None or row.other is None or row.speedup is None:
        return [""] * (6 if with_energy else 5)
    a, b = row.baseline, row.other
    energy = [f"{_joules(a)} > {_joules(b)}"] if with_energy else []
    return [
        a.ms.text(),
        b.ms.text(),
        f"{a.images_per_second:,.0f} > {b.images_per_second:,.0f}",
        "-"
        if a.memory is None or b.memory is None
        else f"{a.memory / 1e6:.2f} > {b.memory / 1e6:.2f}",
        *energy,
        _claim(row),
    ]


def _claim(row: Row) -> str:
    s = row.speedup
    assert s is not None
    if row.verdict == "no difference":
        return f"no difference ({s.low:.2f}-{s.high:.2f})"
    return s.text(unit="x")


def _joules(side: BenchFigures) -> str:
    return "-" if side.energy is None else f"{side.energy:.3g}"


def _split(values: list[str] | None) -> list[str]:
    parts = [part.strip() for value in values or [] for part in value.split(",")]
    return [part for part in parts if part]
