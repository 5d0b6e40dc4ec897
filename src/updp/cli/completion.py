"""Shell completion of values: each function takes what was typed and returns candidates.
Its parameter has the name by which typer passes that.

A key was pressed and the user waits, so nothing here imports PyTorch, builds a model or reads more
than names of files. Where nothing is offered, the shell offers files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

Complete = Callable[[str], list[str]]

_PACKAGE = Path(__file__).parents[1]
_RUN_FILE = "run.json"  # which every run directory has from its start
_BELOW = 2  # folders below the typed one, down to which runs are looked for
_MOST = 2000  # folders that are looked at, and entries of each
# Shells evaluate what is offered: names with quotes or spaces are left to their own completion.
_SAFE = re.compile(r"[\w./@%+,=-]+")


def choose(*values: str) -> Complete:
    """Completion to one of the values."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def choose_several(*values: str) -> Complete:
    """Completion to values with commas between them, each once."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        left = [value for value in values if value not in before.split(",")]
        return [f"{before}{comma}{value}" for value in left if value.startswith(last)]

    return complete


def model(incomplete: str) -> list[str]:
    """A network of the zoo; before anything is typed, how other names begin, too."""
    zoo = sorted(f"zoo/{file.stem}" for file in (_PACKAGE / "zoo/weights").glob("*.safetensors"))
    return choose(*zoo)(incomplete) if incomplete else [*zoo, "timm/", "torchvision/", "hf/"]


def model_or_run(incomplete: str) -> list[str]:
    """A model, or a run directory."""
    return [*run_directory(incomplete), *model(incomplete)]


def recipe(incomplete: str) -> list[str]:
    """A recipe that comes with updp."""
    folder = _PACKAGE / "recipe/presets"
    files = [file.relative_to(folder).with_suffix("") for file in folder.rglob("*.yaml")]
    return choose(*sorted(file.as_posix() for file in files))(incomplete)


def budget(incomplete: str) -> list[str]:
    """Complete a budget: its quantity, and how its limit is written."""
    examples = {
        "blocks": ["6"],
        "latency": ["1.5x", "12ms"],
        "macs": ["70%", "2G"],
        "parameters": ["70%", "5M"],
        "memory": ["70%", "300MB"],
    }
    return _assignments(incomplete, examples)


def setting(incomplete: str) -> list[str]:
    """A setting of a recipe; when only one is left, its default and other values by name, too."""
    from updp.recipe import Recipe
    from updp.recipe.part import Part

    values: dict[str, list[str]] = {}
    for name, field in Recipe.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Part):
            values |= {f"{name}.{key}": _values(of) for key, of in kind.model_fields.items()}
        elif name != "budget":  # which has an option of its own
            values[name] = _values(field)
    return _assignments(incomplete, values)


def _values(field: Any) -> list[str]:
    """A setting's default as YAML, and what else it may be, where that has names."""
    default = field.default
    if isinstance(default, tuple):
        return []
    text = {None: "null", True: "true", False: "false"}
    shown = text[default] if default is None or isinstance(default, bool) else str(default)
    named = ["true", "false"] if field.annotation is bool else get_args(field.annotation)
    return list(dict.fromkeys([shown, *(v for v in named if isinstance(v, str))]))


def _assignments(incomplete: str, values: dict[str, list[str]]) -> list[str]:
    """`name=`, or that and its values where one name is left.

    A shell puts a space behind the only candidate, and none behind what several begin with.
    """
    found = [f"{name}=" for name in values if f"{name}=".startswith(incomplete)]
    names = [name for name in values if incomplete.startswith(f"{name}=")]
    if len(found) == 1:
        names = [found[0][:-1]]
    return found + choose(*(f"{n}={v}" for n in names for v in values[n]))(incomplete)


def run_directory(incomplete: str) -> list[str]:
    """The run directories that begin with what was typed, or are a little below of it."""
    return [place for place, is_run in _walk(incomplete) if is_run]


def _walk(incomplete: str) -> Iterator[tuple[str, bool]]:
    """Folders that begin with what was typed, and whether each is a run; none inside of a run."""
    pending = [(folder, _BELOW) for folder in _folders(incomplete)]
    for _ in range(_MOST):
        if not pending:
            return
        place, below = pending.pop(0)
        is_run = os.path.isfile(os.path.join(os.path.expanduser(place), _RUN_FILE))
        yield place, is_run
        if not is_run and below:
            pending += [(folder, below - 1) for folder in _folders(f"{place}/")]


def _folders(incomplete: str) -> list[str]:
    """Folders that begin with what was typed, as one would type them; hidden ones if asked for."""
    parent, slash, beginning = incomplete.rpartition("/")
    try:
        with os.scandir(os.path.expanduser(parent + slash) or ".") as entries:
            names = [entry.name for entry in _few(entries) if entry.is_dir()]
    except OSError:
        return []
    shown = [n for n in names if n.startswith(beginning) and (beginning or not n.startswith("."))]
    return sorted(f"{parent}{slash}{name}" for name in shown if _SAFE.fullmatch(name))


def _few(entries: Iterable[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
    return [entry for entry, _ in zip(entries, range(_MOST), strict=False)]
