"""Options in groups: a command takes a dataclass, and its fields become options of the command."""

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Say what is refused, cached and left out, and why."),
]


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its groups written out, as typer wants it, and `--verbose` beside them.

    Parameters that are annotated with a dataclass give way to the dataclass's fields, which are
    annotated as typer's options; the command is then called with the dataclass.
    """
    hints = get_type_hints(command, include_extras=True)
    plain: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        hint = hints[name]
        if isinstance(hint, type) and is_dataclass(hint):
            groups[name] = hint
            of_field = get_type_hints(hint, include_extras=True)
            plain += [
                inspect.Parameter(
                    f.name, parameter.KEYWORD_ONLY, default=f.default, annotation=of_field[f.name]
                )
                for f in fields(hint)
            ]
        else:
            plain.append(parameter.replace(annotation=hint))
    plain.append(
        inspect.Parameter("verbose", parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
    )

    @functools.wraps(command)
    def run(**given: Any) -> None:
        if given.pop("verbose"):
            log_to_stderr()
        made = {
            name: group(**{f.name: given.pop(f.name) for f in fields(group)})
            for name, group in groups.items()
        }
        command(**made, **given)

    plain.sort(key=lambda p: p.default is not p.empty)
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=p.KEYWORD_ONLY) for p in plain]
    )
    run.__annotations__ = {p.name: p.annotation for p in plain}
    return run


def log_to_stderr() -> None:
    """Show the logger `updp`, from INFO on, a line each."""
    logger = logging.getLogger("updp")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
