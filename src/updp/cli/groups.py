"""Groups of options: dataclasses whose fields become options of a typer command."""

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from updp.errors import printable

Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say what is refused, cached and left out, and why.")
]


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """Make a typer command from a function whose parameters may be groups of options.

    A parameter annotated with a dataclass is replaced by one option per field; the function is
    called with an instance of the dataclass. `--verbose` is added.
    """
    hints = get_type_hints(command, include_extras=True)
    options: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        hint = hints[name]
        if isinstance(hint, type) and is_dataclass(hint):
            groups[name] = hint
            annotations = get_type_hints(hint, include_extras=True)
            options += [
                inspect.Parameter(
                    f.name,
                    parameter.KEYWORD_ONLY,
                    default=f.default,
                    annotation=annotations[f.name],
                )
                for f in fields(hint)
            ]
        else:
            options.append(parameter.replace(annotation=hint, kind=parameter.KEYWORD_ONLY))
    options.append(
        inspect.Parameter(
            "verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose
        )
    )

    @functools.wraps(command)
    def run(**values: Any) -> None:
        if values.pop("verbose"):
            logging.getLogger("updp").setLevel(logging.INFO)
        instances = {
            name: group(**{f.name: values.pop(f.name) for f in fields(group)})
            for name, group in groups.items()
        }
        command(**instances, **values)

    options.sort(key=lambda p: p.default is not p.empty)
    # typer reads parameters from the signature, and their types from the annotations.
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in options}
    return run


class LineFormatter(logging.Formatter):
    """Log formatter to one printable line: names from files may hold what terminals obey.

    Messages that only --verbose shows begin with the module that logs them.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        name = record.name if record.levelno < logging.WARNING else "updp: warning"
        return printable(f"{name}: {super().format(record)}")


@contextmanager
def logged_to_stderr(level: int) -> Iterator[None]:
    """Print messages of the logger `updp`, of `level` and above, one line each, to stderr."""
    logger = logging.getLogger("updp")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
