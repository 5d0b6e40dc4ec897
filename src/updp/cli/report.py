"""`updp report RUN...`: a report of one run, or a comparison of several."""

from pathlib import Path
from typing import Annotated

import typer

from updp.cli import completion


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories of finished runs.", autocompletion=completion.run_directory
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File, .html or .md, or folder; by default RUN/report.html, for several runs "
            "report.html in this folder.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="html, or markdown for a README or PR.",
            autocompletion=completion.choose("html", "markdown"),
        ),
    ] = None,
) -> None:
    """Write a report of one run, or a comparison of several, as one file that works offline."""
    from updp.deploy.report import report as write

    print(f"report: {write(*runs, out=out, format=format)}")
