"""`updp export RUN --to FORMAT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from updp.cli.options import DataOption, ModelOption, Weights
from updp.cli.progress import Bars
from updp.deploy import export as exports
from updp.deploy.export import Exported


def export(
    run: Annotated[Path, typer.Argument(help="Run directory of a finished `updp prune`.")],
    to: Annotated[
        list[str] | None,
        typer.Option(
            help="onnx, pt2, safetensors, openvino; several with commas, or all. By default onnx."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; by default RUN/export.")
    ] = None,
    images: Annotated[
        int, typer.Option(help="Test images to compare each file with PyTorch on, at most.")
    ] = 1000,
    model: ModelOption = None,
    data: DataOption = None,
    weights: Weights = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where the images are prepared: cpu, the default, or cuda, cuda:1, mps. The "
            "files are compared on the CPU."
        ),
    ] = None,
) -> None:
    """Write the merged model as files that other runtimes load, each compared with PyTorch.

    Batches of any size, and images of any size where the network admits it. A file that does
    not compute what the model does is not kept; the other formats are. Files that are not from
    an earlier export of the run are not replaced.
    """
    console = Console(width=None if sys.stdout.isatty() else 140)
    records: list[Exported] = []
    try:
        with Bars(console) as bars:
            exports.export(
                run,
                to or ["onnx"],
                out=out,
                model=model,
                data=data,
                weights=weights,
                device=device,
                images=images,
                progress=bars,
                each=records.append,
            )
    finally:  # a format that fails does not undo the others
        if records:
            print_exports(console, records, run)


def print_exports(console: Console, records: list[Exported], run: Path) -> None:
    """The exported files, their sizes, and how they compare with the merged model."""
    first = records[0]
    table = Table(
        title=f"{first.parameters:,} parameters; the baseline has {first.baseline_parameters:,}",
        title_justify="left",
    )
    names = ("MB", "baseline's", "largest error", "relative", "top-1 agrees", "undecided")
    table.add_column("files")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("any")
    table.add_column("compared at")
    for record in records:
        base = record.baseline_bytes
        table.add_row(
            escape(", ".join(record.files)),
            f"{record.bytes / 1e6:.3f}",
            "" if base is None else f"{base / 1e6:.3f} ({record.bytes / base:.2f})",
            f"{record.max_abs:.0e}",
            f"{record.max_rel:.0e}",
            f"{record.top1_agreement:.2f} %",
            str(record.undecided),
            ", ".join(record.dynamic),
            ", ".join("x".join(map(str, size)) for size in record.input_sizes),
        )
    console.print(table)
    console.print(
        f"compared with the merged PyTorch model on {first.images} test images; undecided: its two "
        f"best logits are closer than the tolerance allows\nfiles: {run / first.folder}; "
        "preprocess.json there says what an image must be made into, docs/deploying.md how",
        highlight=False,
        soft_wrap=True,
    )
