"""The typer app with all commands, and its entry point.

PyTorch takes seconds to import, so commands import it when they run and `--help` does without.
"""

import logging
import os
import sys
from contextlib import ExitStack, redirect_stdout
from typing import Annotated

import typer

from updp.cli.bench import bench
from updp.cli.estimate import estimate
from updp.cli.export import export
from updp.cli.groups import expand
from updp.cli.inspect import inspect
from updp.cli.quantize import quantize
from updp.cli.report import report
from updp.cli.stages import merge, prune, search, subnet, supernet
from updp.errors import ExportError, MergeError, ProcessLostError, UserError

app = typer.Typer(
    name="updp",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a trained vision model shallower, and so faster, with little loss of accuracy.\n\n"
    "[b]updp inspect[/b] shows what can be pruned; [b]updp estimate[/b] says how long that takes; "
    "[b]updp prune[/b] does all of it; "
    "[b]supernet[/b], [b]search[/b], [b]subnet[/b] and [b]merge[/b] are its four stages, each on "
    "the same run directory; the others work on a finished run.",
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"updp {version('updp')}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Options of `updp` itself."""


for command in (
    inspect,
    estimate,
    prune,
    supernet,
    search,
    subnet,
    merge,
    export,
    quantize,
    bench,
    report,
):
    app.command()(expand(command))
app.command("quantise", hidden=True)(expand(quantize))  # its former name


def main() -> None:
    """Run the command line; errors are one line, exit code 2 for the user's and 1 for others.

    Of several processes of a run the first reports; of the others only their errors are said.
    """
    number = os.environ.get("RANK", "0")  # as torchrun and accelerate set it
    is_first = number == "0"
    # INFO lines (what was refused, cached or left out) are shown with --verbose only.
    logging.getLogger("updp").setLevel(logging.WARNING if is_first else logging.ERROR)
    name = "updp" if is_first else f"updp (process {number})"
    with ExitStack() as stack:
        if not is_first:
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            app()
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except (ExportError, MergeError, ProcessLostError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            raise SystemExit(1) from None
