"""Shell completion of values: each function takes the text typed so far and returns candidates.
Its parameter is called `incomplete`, because typer passes the text under this name.

The user waits for an answer, so nothing here imports PyTorch, builds a model or reads the
content of files. If there are no candidates, the shell offers files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

Complete = Callable[[str], list[str]]

_PACKAGE = Path(__file__).parents[1]
_RUN_FILE = "run.json"  # every run directory has it from its start
_BELOW = 2  # levels of folders below the typed one that are searched for runs
_MOST = 2000  # limit of folders that are visited, and of entries read in each
# Shells evaluate candidates: names with quotes or spaces are left to the shell's own completion.
_SAFE = re.compile(r"[\w./@%+,=-]+")


def choose(*values: str) -> Complete:
    """Completion to one of the values."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def choose_several(*values: str) -> Complete:
    """Return a completion to values separated by commas, each used once."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        left = [value for value in values if value not in before.split(",")]
        return [f"{before}{comma}{value}" for value in left if value.startswith(last)]

    return complete


def model(incomplete: str) -> list[str]:
    """Complete a network of the zoo; for empty text, offer prefixes of other names as well."""
    zoo = sorted(f"zoo/{file.stem}" for file in (_PACKAGE / "zoo/weights").glob("*.safetensors"))
    return choose(*zoo)(incomplete) if incomplete else [*zoo, "timm/", "torchvision/", "hf/"]


def model_or_run(incomplete: str) -> list[str]:
    """Complete a model or a run directory."""
    return [*run_directory(incomplete), *model(incomplete)]


def recipe(incomplete: str) -> list[str]:
    """Complete a recipe that comes with updp."""
    folder = _PACKAGE / "recipe/presets"
    files = [file.relative_to(folder).with_suffix("") for file in folder.rglob("*.yaml")]
    return choose(*sorted(file.as_posix() for file in files))(incomplete)


def budget(incomplete: str) -> list[str]:
    """Complete a budget: its quantity, and then examples of its limit."""
    examples = {
        "blocks": ["6"],
        "latency": ["1.5x", "12ms"],
        "macs": ["70%", "2G"],
        "parameters": ["70%", "5M"],
        "memory": ["70%", "300MB"],
    }
    return _assignments(incomplete, examples)


def setting(incomplete: str) -> list[str]:
    """Complete a setting of a recipe; if only one matches, offer also its values."""
    from updp.recipe import Recipe
    from updp.recipe.part import Part

    values: dict[str, list[str]] = {}
    for name, field in Recipe.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Part):
            values |= {f"{name}.{key}": _values(of) for key, of in kind.model_fields.items()}
        elif name != "budget":  # the budget has its own option
            values[name] = _values(field)
    return _assignments(incomplete, values)


def _values(field: Any) -> list[str]:
    """Return a setting's default as YAML, and its other values if they have names."""
    default = field.default
    if isinstance(default, tuple):
        return []
    text = {None: "null", True: "true", False: "false"}
    shown = text[default] if default is None or isinstance(default, bool) else str(default)
    named = ["true", "false"] if field.annotation is bool else get_args(field.annotation)
    return list(dict.fromkeys([shown, *(v for v in named if isinstance(v, str))]))


def _assignments(incomplete: str, values: dict[str, list[str]]) -> list[str]:
    """Return `name=` of each match; if only one matches, also `name=value` with its values.

    A shell adds a space after a single candidate, but none after the common prefix of several.
    """
    found = [f"{name}=" for name in values if f"{name}=".startswith(incomplete)]
    names = [name for name in values if incomplete.startswith(f"{name}=")]
    if len(found) == 1:
        names = [found[0][:-1]]
    return found + choose(*(f"{n}={v}" for n in names for v in values[n]))(incomplete)


def run_directory(incomplete: str) -> list[str]:
    """Complete run directories that begin with the typed text, or are a few levels below it."""
    return [place for place, is_run in _walk(incomplete) if is_run]


def _walk(incomplete: str) -> Iterator[tuple[str, bool]]:
    """Yield folders that begin with the typed text, and whether each is a run; none inside runs."""
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
    """Return folders that begin with the typed text, as typed; hidden ones only after a dot."""
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
