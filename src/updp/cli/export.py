"""`updp export RUN --to FORMAT`: the merged model as files that other runtimes load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from updp.cli import completion
from updp.cli.options import FinishedOptions, FinishedRun
from updp.errors import UserError

# The formats of deploy.export, repeated because it imports PyTorch, and `all` and `hub`.
FORMATS = ("onnx", "pt2", "safetensors", "openvino", "all", "hub")

if TYPE_CHECKING:
    from rich.console import Console

    from updp.deploy.export import Exported


def export(
    run: FinishedRun,
    finished: FinishedOptions,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            help="onnx, pt2, safetensors, openvino; several with commas, or all. By default onnx. "
            "hub: a folder for a model hub, with a card.",
            autocompletion=completion.choose_several(*FORMATS),
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files; by default RUN/export.")
    ] = None,
    licence: Annotated[
        str, typer.Option("--licence", help="Of the baseline's weights, for the card of `hub`.")
    ] = "",
    test_images: Annotated[
        int,
        typer.Option(
            "--test-images", help="Test images to compare each file with PyTorch on, at most."
        ),
    ] = 1000,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            help="Where the images are prepared: cpu, the default, or cuda, cuda:1. The "
            "files are compared on the CPU.",
            autocompletion=completion.choose("cpu", "cuda"),
        ),
    ] = "cpu",
) -> None:
    """Write the merged model as files that other runtimes load, each compared with PyTorch.

    Batches of any size, and images of any size where the network admits it. A file that does
    not compute what the model does is not kept; the other formats are. Files that are not from
    an earlier export of the run are not replaced.
    """
    from updp.cli.tables import standard_console
    from updp.deploy import export as exports
    from updp.deploy.hub import write_hub_folder
    from updp.io.bars import Bars

    console = standard_console()
    formats = [name.strip() for names in to or ["onnx"] for name in names.split(",")]
    if "hub" in formats:
        if len(formats) > 1 or device != "cpu":
            raise UserError("--to hub writes a folder of its own: give it alone, without --device")
        with Bars(console) as bars:
            folder = write_hub_folder(
                run,
                out,
                licence=licence,
                **vars(finished),
                test_images=test_images,
                progress=bars,
            )
        console.print(f"a folder for a hub: {folder}", highlight=False)
        return
    records: list[Exported] = []
    try:
        with Bars(console) as bars:
            exports.export(
                run,
                formats,
                out=out,
                model=finished.model,
                data=finished.data,
                test=finished.test,
                weights=finished.weights,
                device=device,
                test_images=test_images,
                progress=bars,
                each=records.append,
            )
    finally:  # a format that fails does not undo the others
        if records:
            print_exports(console, records, run)


def print_exports(console: Console, records: list[Exported], run: Path) -> None:
    """Print a table of the exported files, their sizes and their errors against PyTorch."""

    from updp.cli.tables import make_table
    from updp.run.records import RunRecord
    from updp.tasks import CLASSIFICATION

    first, classifies = records[0], RunRecord.read(run).task == CLASSIFICATION.name
    table = make_table(
        f"{first.parameters:,} parameters; the baseline has {first.baseline_parameters:,}",
        left=("files", "any", "compared at"),
        names=(
            *("files", "MB", "baseline's", "largest error", "relative"),
            *(("same best class", "undecided") if classifies else ()),
            *("any", "compared at"),
        ),
    )
    for record in records:
        base = record.baseline_bytes
        table.add_row(
            ", ".join(record.files),
            f"{record.bytes / 1e6:.3f}",
            "" if base is None else f"{base / 1e6:.3f} ({record.bytes / base:.2f})",
            f"{record.max_abs:.0e}",
            f"{record.max_rel:.0e}",
            *([f"{record.top1_agreement:.2f} %", str(record.undecided)] if classifies else []),
            ", ".join(record.dynamic),
            ", ".join("x".join(map(str, size)) for size in record.input_sizes),
        )
    console.print(table)
    undecided = "; undecided: its two best logits are closer than the tolerance allows"
    console.print(
        f"compared with the merged PyTorch model on {first.images} test images"
        f"{undecided if classifies else ''}\nfiles: {run / first.folder}; "
        "preprocess.json there says what goes in, the guide on deploying how",
        highlight=False,
        soft_wrap=True,
    )
