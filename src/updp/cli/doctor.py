"""`updp doctor RUN`: what is whole and what is broken in a run directory."""

from pathlib import Path
from typing import Annotated

import typer

from updp.cli import completion


def doctor(
    run: Annotated[
        Path,
        typer.Argument(
            help="A run directory, finished or not.", autocompletion=completion.run_directory
        ),
    ],
) -> None:
    """Say what is whole and what is broken in a run directory, and which commands mend it.

    Every file of a finished stage is compared with its length and checksum. Nothing is loaded, run
    or written. Exit code 1 where something is broken.
    """
    from updp.cli.tables import make_table, standard_console
    from updp.run.doctor import examine

    found, console = examine(run), standard_console()
    table = make_table(str(run), ("what", "state", "why"), left=("state", "why"))
    for finding in found.findings:
        table.add_row(finding.where, finding.state, "\n".join(finding.faults))
    console.print(table)
    if found.commands:
        each = "each with" if len(found.commands) > 1 else "with"
        console.print(
            f"next: {', then '.join(found.commands)}, {each} the run's options and --out {run}"
        )
    if not found.is_whole:
        raise typer.Exit(1)
