"""The typer app with all commands, and its entry point.

PyTorch takes seconds to import, so commands import it when they run; `--help` does not need it.
"""

import logging
import os
import sys
import traceback
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from typing import Annotated, Any

import typer

from updp.cli.bench import bench
from updp.cli.doctor import doctor
from updp.cli.estimate import estimate
from updp.cli.export import export
from updp.cli.groups import expand, logged_to_stderr
from updp.cli.inspect import inspect
from updp.cli.quantize import quantize
from updp.cli.report import report
from updp.cli.stages import merge, prune, search, subnet, supernet
from updp.cli.zoo import zoo
from updp.errors import (
    DamagedError,
    ExportError,
    MachineError,
    MergeError,
    ProcessLostError,
    UserError,
    explain,
    is_out_of_memory,
    printable,
)
from updp.io import interrupts
from updp.io.memory import kept_memory

# The class of click, or the equivalent in newer versions of typer.
_UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="updp",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a trained vision model faster: shallower, or narrower where that costs less.\n\n"
    "[b]updp inspect[/b] shows what can be pruned; [b]updp estimate[/b] says how long that takes; "
    "[b]updp prune[/b] does all of it; "
    "[b]supernet[/b], [b]search[/b], [b]subnet[/b] and [b]merge[/b] are its four stages, each on "
    "the same run directory. [b]export[/b], [b]quantize[/b], [b]bench[/b] and [b]report[/b] work "
    "on a finished run; [b]bench[/b] also compares any two models, [b]doctor[/b] checks any run, "
    "[b]zoo[/b] lists small networks.",
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
    doctor,
    zoo,
):
    app.command()(expand(command))
app.command("quantise", hidden=True)(expand(quantize))  # its former name


def main() -> None:
    """Run the command line; an error prints one line.

    Exit codes: 2 for mistakes that the user can correct, 3 for the machine's faults (a full disk,
    no permission), 1 for other errors, 130 and 143 after Ctrl-C and SIGTERM.

    If a run has several processes, the first one reports; the others print only their errors.
    """
    number = os.environ.get("RANK", "0")  # as torchrun and accelerate set it
    is_first = number == "0"
    name = "updp" if is_first else f"updp (process {number})"
    with ExitStack() as stack:
        # A stream that was closed before the start (`>&-`, some daemons) is None in Python.
        for stream, redirect in (("stdout", redirect_stdout), ("stderr", redirect_stderr)):
            if getattr(sys, stream) is None:
                stack.enter_context(redirect(stack.enter_context(open(os.devnull, "w"))))
        # INFO lines (what was refused, cached or left out) are shown with --verbose only.
        stack.enter_context(logged_to_stderr(logging.WARNING if is_first else logging.ERROR))
        if not is_first:
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            stack.enter_context(interrupts.handled())
            stack.enter_context(kept_memory())
            if code := app(standalone_mode=False):
                raise SystemExit(code)
        except _UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                print(error.ctx.get_help())
            else:
                _say(name, _how_to_call(error))
            raise SystemExit(2) from None
        except interrupts.Stopped as stopped:
            if is_first:
                _say(name, _how_to_go_on(stopped))
            raise SystemExit(stopped.exit_code) from None
        except (UserError, OSError) as error:
            told = _with_advice(error)
            _say(name, str(told))
            raise SystemExit(3 if isinstance(told, MachineError) else 2) from None
        except (ExportError, MergeError, ProcessLostError) as error:
            _say(name, str(error))
            raise SystemExit(1) from None
        except Exception as error:
            if is_out_of_memory(error):  # outside of stages, as while model and data are opened
                _say(name, "memory does not suffice: free some, or take smaller inputs")
                raise SystemExit(3) from None
            traceback.print_exc()
            _say(name, "this is a bug of updp: report it with the lines above and `updp --version`")
            raise SystemExit(1) from None


def _with_advice(error: UserError | OSError) -> UserError:
    """Return the error of a command as a UserError, with advice if it has none."""
    if isinstance(error, OSError):
        return explain(error)
    if isinstance(error, DamagedError):
        from updp.run.integrity import advised

        return advised(error)
    return error


def _say(name: str, text: str) -> None:
    print(f"{name}: {printable(text)}", file=sys.stderr)


def _how_to_call(error: Any) -> str:
    """Return the line for a command that was called with wrong arguments."""
    text = error.format_message()
    command = error.ctx.command_path if error.ctx is not None else _called()
    names = set() if error.ctx is None else {p.name for p in error.ctx.command.params}
    if "extra argument" in text and "out" in names and not names & {"run", "runs"}:
        text += ": a run is named by --out"
    return f"{text[:1].lower()}{text[1:].rstrip('.')}; see `{command} -h`"


def _called() -> str:
    """Return the command's name from `sys.argv`, because some errors of options do not have it."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    names = {c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands}
    return f"updp {first}" if first in names else "updp"


def _how_to_go_on(stopped: interrupts.Stopped) -> str:
    """The line for a command that was stopped by a signal."""
    if not stopped.stage:
        return "stopped; the same command starts again"
    fresh = ", without --fresh," if "--fresh" in sys.argv else ""
    return (
        f"stopped in the stage {stopped.stage}{stopped.detail}: the same command{fresh} goes on "
        "from there"
    )
