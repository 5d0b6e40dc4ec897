"""Write the pages of docs/reference that are made from the code.

    python docs/make_reference.py

Commands come from the command line's own help, settings from the recipe, and the files of a run
directory from their schema. A test compares the pages with what this would write.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer.main
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import updp
from updp.cli.app import app
from updp.errors import DamagedError, MachineError, MergeError, ProcessLostError, UserError
from updp.io.records import Record
from updp.recipe import NAMES, Recipe
from updp.recipe.part import Part

HERE = Path(__file__).parent / "reference"


def commands() -> str:
    """Every command with its arguments and options."""
    group = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        f"`updp` has {_count(group)} commands; `updp COMMAND -h` says the same. Without a command",
        "it has these options ([shell completion](../get-started.md#shell-completion)):",
        "",
        *_options(group),
    ]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if command.hidden:
            continue
        about = inspect.cleandoc(command.help or "").replace("\f", "")
        lines += [f"## updp {name}", "", about, ""]
        lines += _options(command)
    return "\n".join(lines)


def settings() -> str:
    """Every field of a recipe."""
    lines = [
        "# Settings of a recipe",
        "",
        "A recipe is a YAML file with any of these fields (`--recipe FILE`); one alone is set by",
        "`--set section.field=value`, in Python by `Recipe.updated`. Recipes by name: "
        + ", ".join(f"`{name}`" for name in NAMES)
        + ".",
        "",
        *_fields(Recipe, [name for name, f in Recipe.model_fields.items() if not _is_part(f)]),
    ]
    for name, field in Recipe.model_fields.items():
        if _is_part(field):
            part: Any = field.annotation
            lines += [f"## {name}", "", _prose(part), "", *_fields(part, list(part.model_fields))]
    return "\n".join(lines)


def run_directory() -> str:
    """Every JSON file of a run directory with its schema."""
    lines = [
        "# Files of a run directory",
        "",
        "Each stage has a folder; what it leaves is listed with length and checksum in its",
        "`done.json`. At the top stand `model.safetensors` (weights of the merged model),",
        "`plan.json`, `result.json`, `recipe.yaml` and `run.json`. Every JSON file says",
        '`"format": 1`, but for `export/hub/config.json`, whose form is timm\'s.',
        "",
    ]
    for record in sorted(_records(), key=lambda kind: kind.FILE):
        lines += [f"## `{record.FILE}`", "", _prose(record), ""]
        lines += _fields(record, [name for name in record.model_fields if name != "format"])
    return "\n".join(lines)


def errors() -> str:
    """What updp raises, and its exit codes."""
    lines = [
        "# Errors and exit codes",
        "",
        "| exit code | when |",
        "| --- | --- |",
        "| 0 | done |",
        "| 1 | a result that must not be used (a merge or export that differs), a lost process of "
        "several, or a bug of ours, with its traceback |",
        "| 2 | what you can put right; one line says what and how |",
        "| 3 | the machine's fault: disk, memory, permission |",
        "| 130, 143 | Ctrl-C, SIGTERM; one line says how to go on |",
        "",
    ]
    for kind in (
        UserError,
        MachineError,
        DamagedError,
        MergeError,
        updp.ExportError,
        ProcessLostError,
    ):
        parents = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
        lines += [f"## `{kind.__name__}` ({parents})", "", _prose(kind), ""]
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "settings": settings,
    "run-directory": run_directory,
    "errors": errors,
}


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (HERE / f"{name}.md").write_text(page().rstrip() + "\n")


def _count(group: Any) -> int:
    return sum(not command.hidden for command in group.commands.values())


def _is_hidden(parameter: Any) -> bool:
    return getattr(parameter, "hidden", False) or parameter.name == "help"


def _options(command: Any) -> list[str]:
    rows = [_option(parameter) for parameter in command.params if not _is_hidden(parameter)]
    return ["| option | meaning |", "| --- | --- |", *rows, ""] if rows else []


def _option(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if not names.startswith("`-"):
        names = f"`{(parameter.metavar or parameter.name).upper()}`"
    text = " ".join((getattr(parameter, "help", None) or "").split())
    return f"| {names} | {_cell(text)} |"


def _is_part(field: FieldInfo) -> bool:
    return inspect.isclass(field.annotation) and issubclass(field.annotation, Part)


def _prose(kind: type) -> str:
    """A class's docstring without its example."""
    return inspect.cleandoc(kind.__doc__ or "").split("\n>>>")[0].strip()


def _fields(model: type[BaseModel], names: list[str]) -> list[str]:
    rows = []
    for name in names:
        field = model.model_fields[name]
        default = (
            ""
            if field.is_required()
            else f"`{_plain(field.get_default(call_default_factory=True))}`"
        )
        said = _cell("; ".join(filter(None, [field.description or "", *_limits(field)])))
        rows.append(f"| `{name}` | {_type(field.annotation)} | {_cell(default)} | {said} |")
    if not rows:
        return []
    return ["| field | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""]


def _limits(field: FieldInfo) -> Iterator[str]:
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    for limit in field.metadata:
        for name, word in words.items():
            if hasattr(limit, name):
                yield f"{word} {getattr(limit, name):,}"


def _plain(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, BaseModel):
        return "its defaults"
    return (
        yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True)
        .split("\n...")[0]
        .strip()
    )


def _type(annotation: Any) -> str:
    """A type in words: `number or null`, `list of text`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_type, inner)))
    if origin in (tuple, list):
        return "list of " + _type(inner[0])
    if origin in (dict, Mapping):
        return f"{_type(inner[1])} by name"
    names = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "true or false",
        NoneType: "null",
    }
    return names.get(annotation, getattr(annotation, "__name__", "any").removeprefix("Any"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _records() -> Iterator[type[Record]]:
    for module in pkgutil.walk_packages(updp.__path__, "updp."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    pending = list(Record.__subclasses__())
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if "FILE" in vars(kind) and kind.__module__.startswith("updp."):
            yield kind


if __name__ == "__main__":
    main()
