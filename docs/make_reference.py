"""Write the pages of docs/reference that are made from the code.

    python docs/make_reference.py

Commands come from the command line's own help, settings from the recipe, and the files of a run
directory from their schema. A test compares the pages with what this would write.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer.main
import yaml
from field_comments import comments_on_fields
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import updp
from updp.candidates import Candidate
from updp.cli.app import app
from updp.errors import DamagedError, MachineError, MergeError, ProcessLostError, UserError
from updp.io.records import Record
from updp.recipe import NAMES, Recipe
from updp.recipe.part import Part, Settings
from updp.tasks import CLASSIFICATION

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
        '`"format": 1`, but for `export/hub/config.json`, whose form is timm\'s. Records inside of',
        "them are described once, under the first file that has them.",
        "",
    ]
    for model in run_models():
        title = f"## `{model.FILE}`" if issubclass(model, Record) else f"### `{model.__name__}`"
        lines += [title, "", _prose(model), "", *_fields(model, list(fields_of(model)))]
    return "\n".join(lines)


def run_models() -> list[type]:
    """The record of each file of a run directory, each followed by the models first met in it."""
    found: dict[type, None] = {}

    def add(model: type) -> None:
        if model not in found:
            found[model] = None
            for field in fields_of(model).values():
                for inner in _models_in(field.annotation):
                    add(inner)

    for record in sorted(_records(), key=lambda kind: kind.FILE):
        add(record)
    return list(found)


def fields_of(model: type) -> dict[str, FieldInfo]:
    """The fields of a pydantic model or a dataclass; a file's `format` is said once for all."""
    if dataclasses.is_dataclass(model):
        hints = get_type_hints(model)
        return {f.name: FieldInfo.from_annotation(hints[f.name]) for f in dataclasses.fields(model)}
    assert issubclass(model, BaseModel)
    hidden = {"format"} if issubclass(model, Record) else set()
    return {name: field for name, field in model.model_fields.items() if name not in hidden}


def meaning(model: type, name: str) -> str:
    """A field's description, else the comment beside it in the source, else the one above it."""
    if said := fields_of(model)[name].description:
        return said
    declared = (comments_on_fields(base) for base in model.__mro__)
    return next((own[name] for own in declared if name in own), "")


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


def _fields(model: type, names: list[str]) -> list[str]:
    rows = []
    for name in names:
        field = fields_of(model)[name]
        default = (
            "" if field.is_required() else _plain(field.get_default(call_default_factory=True))
        )
        said = _cell("; ".join(filter(None, [meaning(model, name), *_limits(field)])))
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
        return "that of classification" if value == CLASSIFICATION.metric else ""
    data = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(data, default_flow_style=True).split("\n...")[0].strip()
    return f"`{text}`"


def _type(annotation: Any, several: bool = False) -> str:
    """A type in words, `number or null`; `several` of it, `numbers or null`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    s = "s" if several else ""
    if origin is Annotated:
        return _type(inner[0], several)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(each, several) for each in inner))
    if origin in (tuple, list):
        return f"list{s} of {_type(inner[0], several=True)}"
    if origin in (dict, Mapping):
        by_name = get_origin(inner[1]) in (dict, Mapping)
        return f"for each name, {_type(inner[1])}" if by_name else f"{_type(inner[1])} by name"
    if _is_described(annotation):
        return f"[`{annotation.__name__}`](#{annotation.__name__.lower()})"
    names = {
        int: f"whole number{s}",
        float: f"number{s}",
        str: "text",
        bool: "true or false",
        NoneType: "null",
        Any: "plain data",
        Candidate: "plain data by name",  # as it is written
    }
    return names.get(annotation) or str(annotation.__name__)


def _is_described(annotation: Any) -> bool:
    """Whether a type has a table of its own on the page of the run directory."""
    if not inspect.isclass(annotation) or issubclass(annotation, Settings):
        return False
    return issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)


def _models_in(annotation: Any) -> Iterator[type]:
    """The described models that a type is made of."""
    if _is_described(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


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
